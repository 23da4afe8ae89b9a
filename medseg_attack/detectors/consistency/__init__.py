"""Detectors that ask the model again, on a changed scan, and compare the answers."""
