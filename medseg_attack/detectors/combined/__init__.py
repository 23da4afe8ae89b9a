"""Detectors that are made of others, and those that were saved."""
