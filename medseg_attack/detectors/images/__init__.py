"""Detectors that look at the scan itself: its noise, and which pixels the answer depends on."""
