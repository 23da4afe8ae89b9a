"""Models around models: with layers in front, several as one, votes of noisy copies."""
