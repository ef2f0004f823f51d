"""The stages of a study, each a command that completes one folder, run locally or as Slurm jobs.

In reading order: `stages` turns a study into an ordered list, from the paths in its configs; `local` runs
the list on this machine and skips what is complete; `submit` renders `job.sbatch.j2` and submits the list,
or one run, with dependencies; `node_health` checks each node at the start of a job; `dry_run` predicts
tokens, memory and GPU-hours of a run, and the memory of a model that is only scored; `templates` writes new
configs, and the study of an own model and own data. The study file itself is `config/study_file.py`.
"""
