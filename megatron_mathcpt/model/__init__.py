"""Llama on Megatron-Core.

In reading order: `settings` makes Megatron-Core's TransformerConfig of shape, layout and precision; `llama`
builds the GPTModel chunks from it, with the core attention of `attention`; `documents` describes packed
samples to that attention; `weights` fills parameters from any source of whole tensors, and has the table of
tensor names.

To add a decoder-only Hugging Face family, say Qwen2 with its QKV biases (15 lines): (1) config/shape.py: a
field for what differs, `add_qkv_bias`, in `read_hf_shape` and `hf_config`; (2) settings.py: pass it to
TransformerConfig, by `_OF_SHAPE` if the name is Megatron-Core's; (3) weights.py: the tensors by Megatron-
Core's key (`...linear_qkv.bias`) in `packed_sizes`, their start in `RandomWeights`; `pack` and `unpack` in
checkpoint/huggingface.py, and there and in train/loop.py AutoModelForCausalLM for LlamaForCausalLM; (4) only
for other layers: `llama._layer_spec`; (5) a shape in tests/support/llama_shapes.py: converted and back its
weights must be equal to the bit, its logits those of transformers.
"""
