"""Gradients, in a ball."""
