"""The costs of a study, before it runs."""
