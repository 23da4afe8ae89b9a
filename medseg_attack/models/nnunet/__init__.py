"""nnU-Net's results folder as a model."""
