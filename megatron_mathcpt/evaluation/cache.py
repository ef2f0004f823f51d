"""Key-value cache for sequences of different lengths, with keys kept as attention wants them: rotated.

Megatron-Core's static cache has one length for the whole batch, and rotates all its keys again for every new
token, a fifth of the time of a small model on a CPU. Used with the local layers alone: Transformer Engine has
its own attention, which takes no mask per row.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb


class Cache(StaticInferenceContext):
    """Keys and values of a batch; `places`: where each row's next token goes, None while prompts are read."""

    def __init__(self, rows: int, longest: int) -> None:
        super().__init__(rows, longest)
        self.places: torch.Tensor | None = None

    def forbidden(self) -> torch.Tensor:
        """Mask [rows, 1, 1, keys], True for the cached places after a row's own."""
        assert self.places is not None
        keys = torch.arange(self.sequence_len_offset + 1, device=self.places.device)
        return (keys > self.places[:, None])[:, None, None]

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        assert self.places is not None
        index = torch.tensor(rows, device=self.places.device)
        self.places = self.places[index]
        for layer, memory in self.key_value_memory_dict.items():
            axis = 0 if isinstance(memory, Rotated) else 1
            self.key_value_memory_dict[layer] = type(memory)(
                part.index_select(axis, index) for part in memory
            )


class Rotated(tuple[torch.Tensor, torch.Tensor]):
    """Keys and values of one layer, [rows, heads, longest sequence, channels] each."""


def use_own_cache(model: Any) -> None:
    """Have every attention of `model` append to a `Cache` by the rules of this module."""
    for layer in model.decoder.layers:
        attention = layer.self_attention
        attention._adjust_key_value_for_inference = partial(_append, attention)


def _append(
    attention: Any,
    cache: Cache | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary: Any,
    *_: Any,
    **__: Any,
) -> tuple[Any, ...]:
    """What `Attention._adjust_key_value_for_inference` of megatron-core 0.16 to 0.19 returns.

    Query, key and value are [new tokens, rows, heads, channels]; the keys and values returned hold the cached
    tokens too. The rotary embedding comes back as None: it has been applied.
    """
    if cache is None:
        return query, key, value, rotary, attention.attn_mask_type, None
    if cache.places is None:
        where: Any = (slice(None), slice(None), slice(0, len(key)))
        angles, end = rotary[0][: len(key)], len(key)
    else:
        where = (torch.arange(len(cache.places), device=key.device), slice(None), cache.places)
        angles, end = rotary[0][cache.places].transpose(0, 1), cache.sequence_len_offset + 1
    groups = attention.pg_collection
    rotate = partial(apply_rotary_pos_emb, freqs=angles, config=attention.config, cp_group=groups.cp)
    keys, values = _memory(attention.layer_number, cache, key)
    new = [part.permute(1, 2, 0, 3) if cache.places is None else part[0] for part in (rotate(key), value)]
    keys[where], values[where] = new
    cached = (memory[:, :, :end].permute(2, 0, 1, 3) for memory in (keys, values))
    return rotate(query), *cached, None, attention.attn_mask_type, None


def _memory(layer: int, cache: Cache, key: torch.Tensor) -> Rotated:
    found = cache.key_value_memory_dict
    if layer not in found:
        _, rows, heads, channels = key.shape
        size = (rows, heads, cache.max_sequence_length, channels)
        found[layer] = Rotated(key.new_zeros(size) for _ in range(2))
    return found[layer]  # type: ignore[no-any-return]
