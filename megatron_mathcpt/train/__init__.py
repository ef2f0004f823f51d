"""Training: `python -m megatron_mathcpt.train`.

In reading order: `__main__`, `inputs` (what is read, no torch), `components` (parts of a run), `datasets`,
`step`, `loop`. Beside the road: `gate` (the first loss), `metrics`, `faults`, `process` (launch, signals,
lock, watchdog), `fused_adam`.
"""
