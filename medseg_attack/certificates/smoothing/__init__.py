"""Certificates of smoothed models: Gaussian noise is added to the whole scan before anything else."""
