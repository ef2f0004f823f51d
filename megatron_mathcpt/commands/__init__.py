"""The command `mathcpt`: verbs, each of which parses its options, calls the package and prints.

`main` has the shared parts (tables, help, error reporting). `start_verbs` are quickstart and new.
`corpus_verbs` go from raw text to a corpus: download, corpora, build, tokenize, synthesize, pack-sft,
inspect. `run_verbs` go from a config to weights: plan, convert and train, and for a run or a study show,
dry-run, run and submit. `score_verbs` go from weights to a comparison: evaluate, contamination, compare,
report, status, trace. A verb imports the package only when it is called: `--help` must not wait for torch.
"""
