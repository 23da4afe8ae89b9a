"""Attacks: frozen dataclasses; a folder is a family, whose title is its docstring."""
