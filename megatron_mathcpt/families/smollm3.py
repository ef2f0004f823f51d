"""SmolLM3: Llama without rotary embedding in every fourth layer (NoPE)."""

from megatron_mathcpt.families.family import COMMON, REQUIRED, Family, Fields


def _rotated(fields: Fields, layer: int) -> bool:
    if (listed := fields["no_rope_layers"]) is not None:  # 1 where there is an embedding, against its name
        return bool(listed[layer])
    return bool((layer + 1) % fields["no_rope_layer_interval"])


SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    defaults=COMMON
    | {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    | {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768}
    | {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
    | {
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
        "pad_token_id": 128004,
    }
    | {"attention_bias": False, "mlp_bias": False},
    required=REQUIRED,
    rotary_base=2000000.0,
    windowed=lambda fields, layer: not _rotated(fields, layer),
    rotated=_rotated,
)
