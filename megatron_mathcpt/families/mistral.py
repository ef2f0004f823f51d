"""Mistral 7B and Nemo: Llama with a window over the last keys in every layer, in the first version."""

from megatron_mathcpt.families.family import COMMON, REQUIRED, Family

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults=COMMON
    | {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8}
    | {"max_position_embeddings": 131072, "sliding_window": 4096},
    required=REQUIRED | {"layer_types": (None,)},
    nullable=("head_dim",),
    windowed=lambda _, layer: True,
)
