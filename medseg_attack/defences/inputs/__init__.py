"""Layers before a model."""
