"""Runs: what is asked for, and what a run leaves on disk. No torch in here."""
