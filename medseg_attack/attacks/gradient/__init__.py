"""Gradient: uphill along the model's gradient, within a ball."""
