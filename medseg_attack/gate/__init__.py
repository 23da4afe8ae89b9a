"""Rules that a run must meet beside its reference, and their verdicts."""
