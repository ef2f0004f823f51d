"""Qwen2 and Qwen2.5, also Math and Coder: Llama with biases of query, key and value."""

from megatron_mathcpt.families.family import COMMON, REQUIRED, Family

WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults=COMMON
    | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
    | {"max_position_embeddings": 32768}
    | WINDOWS,
    required=REQUIRED,
    add_qkv_bias=True,
    windowed=lambda fields, layer: bool(layer >= fields["max_window_layers"]),
)
