"""Measures of a prediction against the truth."""
