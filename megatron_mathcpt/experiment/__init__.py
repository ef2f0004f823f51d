"""A grid of stages, each a command that completes one folder, run here or handed to Slurm."""
