"""Architectures that can be trained here."""
