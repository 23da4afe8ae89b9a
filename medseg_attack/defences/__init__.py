"""Defences: what makes a model harder to attack; a folder is the place where it acts, a file a defence."""
