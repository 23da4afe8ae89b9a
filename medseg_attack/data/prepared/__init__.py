"""The prepared data set: written by `prepare`, read by everything else."""
