"""Hugging Face's names of Megatron-Core's tensors, as a table, and how one is packed into the other.

Megatron-Core holds query, key and value of one key-value head next to each other, head after head
([q heads of the group; k; v] on dimension 0), and gate above up. Rotary channels have the same order in both.
"""

from collections.abc import Iterator

import torch

from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.model.weights import EMBEDDING, LAYERS, OUTPUT

QKV = "self_attention.linear_qkv.weight"

# Megatron-Core's key in a layer -> the names under `model.layers.N.` that it packs, in order.
LAYER_NAMES: dict[str, tuple[str, ...]] = {
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight",),
    QKV: ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
MODEL_NAMES: dict[str, tuple[str, ...]] = {
    EMBEDDING: ("model.embed_tokens.weight",),
    "decoder.final_layernorm.weight": ("model.norm.weight",),
    OUTPUT: ("lm_head.weight",),
}


def tensor_keys(shape: LlamaShape) -> Iterator[tuple[str, int | None]]:
    """Key and layer of every tensor of a model, in the order of the forward pass."""
    yield EMBEDDING, None
    for layer in range(shape.num_layers):
        for key in LAYER_NAMES:
            yield LAYERS + key, layer
    yield "decoder.final_layernorm.weight", None
    if not shape.share_embeddings_and_output_weights:
        yield OUTPUT, None


def hf_names(key: str, layer: int | None) -> tuple[str, ...]:
    """Hugging Face's names of the tensors that Megatron-Core's `key` packs."""
    if layer is None:
        return MODEL_NAMES[key]
    return tuple(f"model.layers.{layer}.{name}" for name in LAYER_NAMES[key.removeprefix(LAYERS)])


def pack(key: str, parts: list[torch.Tensor], shape: LlamaShape) -> torch.Tensor:
    """Megatron-Core's tensor from Hugging Face's parts."""
    if not key.endswith(QKV):
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    grouped = [part.unflatten(0, (shape.query_groups, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def unpack(key: str, whole: torch.Tensor, shape: LlamaShape) -> list[torch.Tensor]:
    """Hugging Face's parts of Megatron-Core's tensor; undoes `pack` bit for bit."""
    if key.endswith(QKV):
        heads = shape.num_attention_heads // shape.query_groups
        grouped = whole.unflatten(0, (shape.query_groups, -1))
        rows = [heads * shape.head_size, shape.head_size, shape.head_size]
        return [part.flatten(0, 1) for part in grouped.split(rows, dim=1)]
    count = len(LAYER_NAMES.get(key.removeprefix(LAYERS), ("",)))
    return list(whole.chunk(count))
