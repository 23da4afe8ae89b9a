"""Audits: what an attacker may have put into training data, or into a model."""
