"""Without the model's gradient."""
