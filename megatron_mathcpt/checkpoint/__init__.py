"""Checkpoints of a run, in a form that any layout loads, and conversion from and to Hugging Face.

In reading order: `save` writes a checkpoint atomically, now or in the background; `load` verifies and reads
it in any layout; `optimizer_state` cuts the sharded optimizer's state so that this works; `convert` is the
two conversions with their checks: `huggingface` reads a folder's weights and compares logits, `hf_export`
writes weights, `side_files` the other files, `model_card` the README. All pickles are read by `safe_pickle`.
Names, commit and retention of the folders are in formats/run_folder.
"""
