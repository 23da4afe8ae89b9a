"""Detectors that look at the model's answer alone: its uncertainty, and the shape of its mask."""
