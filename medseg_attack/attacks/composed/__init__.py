"""Composed: made of other attacks."""
