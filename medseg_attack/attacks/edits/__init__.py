"""Edits: anatomy that is added or removed, and the truth with it."""
