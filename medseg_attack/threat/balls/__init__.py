"""Balls: what an attacker may change in an image, and by how much."""
