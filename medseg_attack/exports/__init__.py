"""Perturbed scans in the source's own format, written and verified."""
