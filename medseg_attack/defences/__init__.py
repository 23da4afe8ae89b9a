"""Defences: a defended model is a model. A layer before it may have no gradient of its own."""
