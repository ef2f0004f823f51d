"""Key-value cache for rows of different lengths, its keys kept as attention wants them: rotated.

Megatron-Core's static cache has one length for the whole batch and rotates all its keys again for every new
token, and Transformer Engine's attention plans anew for every length. This cache serves local layers and
Transformer Engine's alike. What one token reads and writes are tensors of fixed size and address until `end`
grows, by `GRANULE`, or rows leave: so a step can be captured as a CUDA graph.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_mathcpt.model.attention import SdpaAttention

# Attention looks at a multiple of so many cached tokens. More: more masked keys are read for nothing. Fewer:
# more graphs are captured, each at the cost of a step without one.
GRANULE = 128


def padded(length: int) -> int:
    """`length` rounded up to whole granules: what a row takes in the cache."""
    return -(-length // GRANULE) * GRANULE


class Cache(StaticInferenceContext):
    """Keys and values of a batch, at most `longest` tokens a row, on the device of `angles`.

    `angles` [padded(longest), 1, 1, channels] are the rotary embedding's, `dtype` is the model's. `lengths`
    are the tokens that each row holds before its next one; while `reading` is true, whole prompts are read.
    """

    def __init__(self, lengths: list[int], longest: int, angles: Tensor, dtype: torch.dtype) -> None:
        super().__init__(len(lengths), padded(longest))
        sine = angles.sin()
        sine[..., : sine.shape[-1] // 2].neg_()  # a half turn is (-second half, first half)
        self._cosines, self._sines = angles.cos().to(dtype), sine.to(dtype)
        self._longest = max(lengths)
        self.places = torch.tensor(lengths, device=angles.device)
        self.rows = torch.arange(len(lengths), device=angles.device)
        self.reading = True
        self.mask: Tensor | None = None
        self._turn = self._cosines, self._sines

    @property
    def end(self) -> int:
        """Cached tokens that the next token's attention looks at: the longest row's, in whole granules."""
        return padded(self._longest + 1)

    def aim(self) -> None:
        """Set rotation and mask [rows, 1, 1, end] for the token at `places`."""
        self._turn = self._cosines[self.places][None, :, 0], self._sines[self.places][None, :, 0]
        later = torch.arange(self.end, device=self.places.device) > self.places[:, None]
        mask = torch.zeros(later.shape, dtype=self._cosines.dtype, device=later.device)
        self.mask = mask.masked_fill_(later, float("-inf"))[:, None, None]

    def advance(self) -> None:
        """Go on to the next token of every row."""
        self.places += 1
        self._longest += 1

    def keep(self, kept: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(kept, device=self.places.device)
        self.places, self.rows = self.places[index], self.rows[: len(kept)]
        self._longest = int(self.places.max())
        for layer, memory in self.key_value_memory_dict.items():
            self.key_value_memory_dict[layer] = tuple(part.index_select(0, index) for part in memory)

    def rotate(self, tensor: Tensor) -> Tensor:
        """Rotary embedding of [new tokens, rows, heads, channels]."""
        cosine, sine = (part[: len(tensor)] for part in self._turn)
        return torch.addcmul(tensor * cosine, tensor.roll(tensor.shape[-1] // 2, -1), sine)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Store keys and values [new tokens, rows, heads, channels]; return all cached, in that order."""
        held: dict[int, tuple[Tensor, ...]] = self.key_value_memory_dict
        if layer not in held:
            _, rows, heads, channels = key.shape
            size = (rows, heads, self.max_sequence_length, channels)
            # Zeros: a masked value still takes part, times nothing, and nothing times garbage may be NaN.
            held[layer] = key.new_zeros(size), key.new_zeros(size)
        for part, new in zip(held[layer], (key, value), strict=True):
            if self.reading:
                part[:, :, : len(new)] = new.permute(1, 2, 0, 3)
            else:
                part[self.rows, :, self.places] = new[0]
        end = len(key) if self.reading else self.end
        return tuple(part[:, :, :end].permute(2, 0, 1, 3) for part in held[layer])


class CachedAttention(SdpaAttention):
    """Causal attention, or with a mask one new token's over the cached ones; the mask is added to scores."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor:
        """As `SdpaAttention`; with a mask [rows, 1, 1, keys], query is [1, rows, heads, channels].

        The query heads of a group stand as queries of one head, so keys need not be repeated for them: with a
        mask PyTorch has no kernel for grouped queries but the slowest.
        """
        if attention_mask is None:
            return super().forward(query, key, value, None)
        grouped = query[0].unflatten(1, (key.shape[2], -1))
        keys, values = (tensor.permute(1, 2, 0, 3) for tensor in (key, value))
        output = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=attention_mask)
        return output.flatten(1)[None]


def use_own_cache(model: Any) -> None:
    """Have every attention of `model` append to a `Cache` and attend by the rules of this module."""
    for layer in model.decoder.layers:
        attention = layer.self_attention
        attention._adjust_key_value_for_inference = partial(_append, attention)
        attention.core_attention = CachedAttention(
            attention.config, attention.layer_number, pg_collection=attention.pg_collection
        )


def _append(
    layer: Any, cache: Cache | None, query: Tensor, key: Tensor, value: Tensor, *more: Any, **_: Any
) -> tuple[Any, ...]:
    """What `Attention._adjust_key_value_for_inference` of megatron-core 0.16 to 0.19 returns.

    Query, key and value are [new tokens, rows, heads, channels]; the keys and values returned hold the cached
    tokens too. The rotary embedding, first of `more`, comes back as None: it has been applied.
    """
    if cache is None:
        return query, key, value, more[0], layer.attn_mask_type, None
    heads = [query.shape[2], key.shape[2]]
    query, key = cache.rotate(torch.cat((query, key), 2)).split(heads, 2)
    key, value = cache.append(layer.layer_number, key, value)
    return query, key, value, None, layer.attn_mask_type, None


Step = Callable[[Tensor, Cache], Tensor]


class Replay:
    """`step` of one batch and cache, captured anew whenever rows leave or the cache's `end` grows.

    The first call with so many rows runs as it is, so that its kernels are loaded and planned for. The result
    is overwritten by the next call.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._rows = self._end = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens = self._result = torch.empty(0)

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """What `step` gives for `tokens` [rows] and the cache."""
        if len(tokens) != self._rows:
            self._rows, self._end, self._graph = len(tokens), 0, None
            return self._step(tokens, cache)
        if cache.end != self._end or self._graph is None:
            self._end, self._tokens, self._graph = cache.end, tokens.clone(), torch.cuda.CUDAGraph()
            # Other threads, such as NCCL's watchdog, may go on with their calls meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._result = self._step(self._tokens, cache)
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._result
