"""Minimal: the least change that succeeds."""
