"""The command `mathcpt`: verbs, each of which parses its options, calls the package and prints.

`main` has the shared parts (tables, help, how an error is reported). `corpus_verbs` go from raw text to a
corpus: download, corpora, build, tokenize, synthesize, pack-sft, inspect. `run_verbs` go from a config to
weights: plan, convert, train, and show, dry-run, run, submit of a run or a study. `score_verbs` go from
weights to a comparison: evaluate, contamination, compare, report, status, trace. Verbs import the package
when they are called, because torch alone takes seconds and `--help` must not wait for it.
"""
