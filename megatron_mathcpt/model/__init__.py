"""Llama on Megatron-Core.

In reading order: `settings` makes Megatron-Core's TransformerConfig of shape, layout and precision; `llama`
builds the GPTModel chunks from it, with the core attention of `attention`; `documents` describes packed
samples to that attention; `weights` fills parameters from any source of whole tensors, and has the table of
tensor names.

To add a decoder-only Hugging Face family, say Qwen2 with its QKV biases: (1) config/shape.py: a field for
what differs, read by `read_hf_shape`, written by `hf_config`; (2) `settings.transformer_config`: pass it to
Megatron-Core (`add_qkv_bias`); (3) `weights.packed_sizes`: the new tensors under Megatron-Core's key, with
Hugging Face's names and sizes (`...linear_qkv.bias`); `checkpoint.huggingface.pack` and `unpack`: how they
are packed; (4) only for other layers than Llama's: `llama._layer_spec`; (5) a shape in
tests/checkpoint/conftest.py, whose conversion and back must be bit-equal with the logits of transformers.
"""
