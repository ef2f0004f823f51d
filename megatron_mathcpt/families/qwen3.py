"""Qwen3, dense: Llama with queries and keys normalised head by head, whose size is a field of its own."""

from megatron_mathcpt.families.family import REQUIRED, Family
from megatron_mathcpt.families.qwen2 import QWEN2

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults={**QWEN2.defaults, "head_dim": 128, "attention_bias": False},
    required=REQUIRED,
    qk_norm="head",
    windowed=QWEN2.windowed,
)
