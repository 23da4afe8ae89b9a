"""The loop: model x cases x attacks -> rows, and the study around it."""
