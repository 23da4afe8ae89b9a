"""Trackers of experiments: training curves and tables in MLflow, TensorBoard and Weights & Biases."""
