"""Checks before a run: can this model's robustness be measured? A model and a few cases in, findings out."""
