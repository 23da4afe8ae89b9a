"""Detectors: a score of each scan that says how unlike the clean ones it is, calibrated on patients of their own."""
