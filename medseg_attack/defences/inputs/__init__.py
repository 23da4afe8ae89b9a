"""Layers that change an image before the model sees it."""
