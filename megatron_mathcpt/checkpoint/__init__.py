"""Checkpoints of a run, and weights from and to Hugging Face.

`save` and `load` with `optimizer_state`; `convert` there and back, through `huggingface`. The folders
themselves are formats/run_folder's.
"""
