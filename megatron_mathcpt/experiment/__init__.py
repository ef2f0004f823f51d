"""A grid of stages, each a command that completes one folder, run here or handed to Slurm.

`stages` makes the list from the grid's configs; `local` runs it here; `submit` hands it, or one run, to Slurm
(with job.sbatch.j2, and `node_health` asked of each node first); `dry_run` says what it will cost;
`sweep` scores every checkpoint of one run.
"""
