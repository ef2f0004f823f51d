"""Score models on mathematics: lm-eval model objects generate, our grader decides what is correct.

In reading order: `evaluate` scores one model on benchmark files and writes a complete folder; `tasks` selects
tasks, builds prompts, grades outputs and aggregates scores, also for the YAML files of `tasks/`; `responses`
appends every output to a file, so that a killed evaluation resumes; `backends` chooses and loads
a back end, with `tokens` for their tokenizers; `openai_lm` is a server's model, `megatron_lm` one on
Megatron-Core; `decoder` generates and scores tokens in any parallel layout; `key_value_cache` is its cache,
with one decoding step as a CUDA graph. `__main__` is lm-eval's own command line with our model and tasks. The
files of the folder are those of `formats/evaluation_folder`. To add a benchmark, see `tasks/_zero_shot.yaml`.
"""
