"""Noise: the loss of images or features that are perturbed at random."""
