"""The decoder families that can be trained: each file is one, as data, and this is their table.

A new one is such a file, its name here, and a row of `FAMILIES` in tests/support/family_shapes.py.
"""

from megatron_mathcpt.families.family import Family
from megatron_mathcpt.families.llama import LLAMA
from megatron_mathcpt.families.mistral import MISTRAL
from megatron_mathcpt.families.olmo import OLMO2, OLMO3
from megatron_mathcpt.families.qwen2 import QWEN2
from megatron_mathcpt.families.qwen3 import QWEN3
from megatron_mathcpt.families.smollm3 import SMOLLM3

_ALL = (LLAMA, MISTRAL, OLMO2, OLMO3, QWEN2, QWEN3, SMOLLM3)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}  # by config.json's `model_type`
