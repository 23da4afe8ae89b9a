"""Certificates: bounds that no change of an image within an L2 radius gets below. The word is used for nothing else."""
