"""Detectors that know how hidden features of clean scans are distributed."""
