"""Score models on mathematics: lm-eval's model objects answer our own tasks, our grader judges.

In reading order: `tasks` (chosen, prompted, judged, summed up), `evaluate` (a model on task files, into a
complete folder), `responses` (answers kept as they come, so that a killed run goes on), `megatron_lm` (a
checkpoint as an lm-eval model), `decoder` (generation and log-likelihoods in any layout), `key_value_cache`.
`__main__` is lm-eval's own command line and evaluator with our tasks, for the same scores. What is written
is `formats/evaluation_folder`'s.
"""
