"""Checks after a run: do its rows contradict themselves? Table in, findings out. No torch in here."""
