"""The command `mathcpt`: a verb a step of the road, each of which parses, calls the package and prints.

`main` joins them and holds what they share: `corpus_verbs` (raw text to a corpus) and `inspect_verbs` (a look
into it), `model_verbs` (layout, conversion, training), `score_verbs` (benchmarks, comparison, report, origin
of a result), `experiment_verbs` (a run or a grid, here or under Slurm). Verbs import the package when they
are called, so that `--help` answers at once. `tools/*.py` and `launch/submit.py` are the same verbs by older
names.
"""
