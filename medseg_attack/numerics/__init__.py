"""Pure functions of tensors; they know nothing of attacks, models or files."""
