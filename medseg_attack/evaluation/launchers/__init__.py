"""Studies that other processes run: jobs of a SLURM array, tasks of Ray. They share the study's folder and no more."""
