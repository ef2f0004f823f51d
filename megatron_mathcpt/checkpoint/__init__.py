"""Checkpoints of a run, and weights from and to Hugging Face.

`save` and `load` with `optimizer_state`; `convert` there and back with `huggingface` and, without torch,
`hf_folder`. The folders themselves are formats/run_folder's.
"""
