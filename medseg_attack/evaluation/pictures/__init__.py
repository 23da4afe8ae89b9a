"""Scans of runs, opened again for pictures: before and after their attack, with what the model predicts."""
