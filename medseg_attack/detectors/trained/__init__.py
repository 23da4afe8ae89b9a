"""Detectors that learned from attacked scans of training patients."""
