"""Llama 2, 3, 3.1 and 3.2, and what has their shape: SmolLM2, DeepSeek LLM, Yi, TinyLlama."""

from megatron_mathcpt.families.family import COMMON, NO_WINDOWS, REQUIRED, Family

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    defaults=COMMON
    | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
    | {"attention_bias": False, "mlp_bias": False},
    required=REQUIRED | NO_WINDOWS | {"attention_dropout": (0.0, 0, None)},
    nullable=("num_key_value_heads", "head_dim"),
)
