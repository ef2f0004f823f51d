"""OLMo 2 and 3: norms after attention and MLP, queries and keys normalised over all heads together.

OLMo 3 adds windows in three of four layers, whose rotary embedding is never scaled for longer contexts.
"""

from megatron_mathcpt.families.family import COMMON, NO_WINDOWS, REQUIRED, Family

_SIZES = {"vocab_size": 50304, "intermediate_size": 11008, "max_position_embeddings": 2048}

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    defaults=COMMON | _SIZES | {"rms_norm_eps": 1e-5, "attention_bias": False, "pad_token_id": 1},
    required=REQUIRED | NO_WINDOWS,
    qk_norm="all heads",
    post_norms=True,
)
OLMO3 = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    defaults={**OLMO2.defaults, "sliding_window": 4096, "layer_types": None},
    required=REQUIRED,
    rotary_base=500000.0,
    qk_norm="all heads",
    post_norms=True,
    windowed=lambda _, layer: bool((layer + 1) % 4),
    scaled_in_windows=False,
)
