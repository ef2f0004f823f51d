"""Checkpoints of a run, and weights from and to Hugging Face."""
