"""Measurements: numbers that a clinic takes from a mask, such as a volume or an ejection fraction."""
