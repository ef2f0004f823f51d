"""Training: `python -m megatron_mathcpt.train`.

In reading order: `__main__` is the whole run, from config to manifest; `inputs` checks and fingerprints what
it reads, without torch; `components` builds its parts, one visible call each, into a `TrainState`; `loop` is
all that happens around a step, and the gate on the first loss; `step` is the schedule, the loss and the
update; `datasets` makes batches from sample numbers. Around them: `metrics` writes rows and traces, `faults`
skips bad steps and compares replicas, `process` has launch, signals and watchdog.
"""
