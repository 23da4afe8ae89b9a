"""What stands before a model and may have no gradient of its own."""
