"""Composed: attacks that run other attacks."""
