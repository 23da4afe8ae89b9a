"""Attacks: frozen dataclasses, one family per file."""
