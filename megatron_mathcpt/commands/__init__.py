"""The command `mathcpt`: verbs, each of which parses, calls the package and prints.

`main` holds what they share; `corpus_verbs` lead to a corpus, `run_verbs` to weights, `score_verbs` to a
comparison. They import the package when they are called, so that `--help` answers at once.
"""
