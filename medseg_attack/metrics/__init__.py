"""What is measured between a prediction and the truth."""
