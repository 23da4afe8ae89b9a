"""Training on a prepared data set: what is planned, augmented, minimised and validated, and the loop."""
