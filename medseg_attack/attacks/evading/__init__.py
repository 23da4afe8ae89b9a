"""Evading: attacks that know a detector."""
