"""Reconstruction: settings of the machine that makes the image of its raw data."""
