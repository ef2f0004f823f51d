"""Training: inputs, datasets, schedule, step, loop, metrics; `python -m megatron_mathcpt.train`."""
