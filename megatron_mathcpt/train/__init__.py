"""Training: `python -m megatron_mathcpt.train`.

In reading order: `__main__`, `inputs` (what is read, no torch), `components` (parts of a run), `datasets`,
`step`, `loop` (and the gate on the first loss). Beside the road: `metrics`, `faults`, `process` (launch,
signals, lock, watchdog).
"""
