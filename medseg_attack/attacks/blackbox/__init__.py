"""Black box: without the model's gradient."""
