"""Key-value cache for rows of different lengths, which stores keys with their rotary embedding applied.

Megatron-Core's static cache has one length for the whole batch and rotates all its keys again for every new
token; Transformer Engine's attention makes a new plan for every length. Here a decoding step, to be a CUDA
graph, has tensors of fixed size and address until `end` grows by `BLOCK` or rows leave the batch.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_mathcpt.model.attention import SdpaAttention

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.attention import Attention

# Attention reads cached tokens in multiples of this. A larger block reads more masked keys for nothing, a
# smaller one captures more graphs, each at the cost of a step without a graph.
BLOCK = 128


def padded(length: int) -> int:
    """`length` rounded up to whole blocks: what a row occupies in the cache."""
    return -(-length // BLOCK) * BLOCK


class Cache(StaticInferenceContext):
    """Keys and values of a batch, at most `longest` tokens a row, on the device of `angles`.

    `angles` [tables, longest, 1, 1, channels] are the rotary embeddings', one for each kind of layer, `dtype`
    is the model's, `lengths` are each row's tokens so far. While `prefilling`, whole prompts are appended.
    """

    def __init__(self, lengths: list[int], longest: int, angles: Tensor, dtype: torch.dtype) -> None:
        super().__init__(len(lengths), padded(longest))
        sine = angles.sin()
        sine[..., : sine.shape[-1] // 2].neg_()  # rotate_half is (-second half, first half)
        self._cosines, self._sines = angles.cos().to(dtype), sine.to(dtype)
        self._longest = max(lengths)
        self.positions = torch.tensor(lengths, device=angles.device)
        self.rows = torch.arange(len(lengths), device=angles.device)
        self.prefilling = True
        self.mask: Tensor | None = None
        self._rotation: tuple[Tensor, ...] = self._cosines, self._sines

    @property
    def end(self) -> int:
        """Cached tokens that the next token's attention reads: the longest row's, in whole blocks."""
        return padded(self._longest + 1)

    def prepare_step(self) -> None:
        """Set rotation and mask [rows, 1, 1, end] for the tokens at `positions`."""
        both = self._cosines, self._sines
        self._rotation = tuple(part[:, self.positions].transpose(1, 2) for part in both)
        later = torch.arange(self.end, device=self.positions.device) > self.positions[:, None]
        mask = torch.zeros(later.shape, dtype=self._cosines.dtype, device=later.device)
        self.mask = mask.masked_fill_(later, float("-inf"))[:, None, None]

    def advance(self) -> None:
        """Move every row to its next token."""
        self.positions += 1  # in place: a captured graph reads this address
        self._longest += 1

    def keep_rows(self, kept: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(kept, device=self.positions.device)
        self.positions, self.rows = self.positions[index], self.rows[: len(kept)]
        self._longest = int(self.positions.max())
        for layer, memory in self.key_value_memory_dict.items():
            self.key_value_memory_dict[layer] = tuple(part.index_select(0, index) for part in memory)

    def rotate(self, tensor: Tensor, table: int) -> Tensor:
        """Apply a rotary embedding to [new tokens, rows, heads, channels]."""
        cosine, sine = (part[table, : len(tensor)] for part in self._rotation)
        return torch.addcmul(tensor * cosine, tensor.roll(tensor.shape[-1] // 2, -1), sine)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Store keys and values [new tokens, rows, heads, channels]; return those of all tokens."""
        memory: dict[int, tuple[Tensor, ...]] = self.key_value_memory_dict
        if layer not in memory:
            _, rows, heads, channels = key.shape
            size = (rows, heads, self.max_sequence_length, channels)
            # Zeros: a masked value is still multiplied, by 0, and uninitialized memory may contain NaN.
            memory[layer] = key.new_zeros(size), key.new_zeros(size)
        for part, new in zip(memory[layer], (key, value), strict=True):
            if self.prefilling:
                part[:, :, : len(new)] = new.permute(1, 2, 0, 3)
            else:
                part[self.rows, :, self.positions] = new[0]
        end = len(key) if self.prefilling else self.end
        return tuple(part[:, :, :end].permute(2, 0, 1, 3) for part in memory[layer])


class CachedAttention(SdpaAttention):
    """Causal attention as in `SdpaAttention`; with a mask, that of one new token over the cached ones."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object
    ) -> Tensor:
        """A mask [rows, 1, 1, keys] is added to the scores of `query` [1, rows, heads, channels]."""
        if attention_mask is None:
            return super().forward(query, key, value, None)
        if self.window is not None and key.shape[0] > self.window:
            # The last key of a row is the one of its new token.
            last = attention_mask.isfinite().sum(-1, keepdim=True)
            keys = torch.arange(key.shape[0], device=key.device)
            attention_mask = attention_mask.masked_fill(keys < last - self.window, float("-inf"))
        # The query heads of a group become queries of one head, so that no key is repeated for them: with a
        # mask PyTorch has only its slowest kernel for grouped queries.
        grouped = query[0].unflatten(1, (key.shape[2], -1))
        keys, values = (tensor.permute(1, 2, 0, 3) for tensor in (key, value))
        output = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=attention_mask)
        return output.flatten(1)[None]


def install_cache(model: "GPTModel") -> None:
    """Make every attention layer of `model` append to a `Cache`, and attend as `CachedAttention` does."""
    for layer in model.decoder.layers:
        attention, groups = layer.self_attention, layer.self_attention.pg_collection
        attention._adjust_key_value_for_inference = partial(_append, attention)
        cached = CachedAttention(attention.config, attention.layer_number, pg_collection=groups)
        attention.core_attention = cached


def _append(
    layer: "Attention",
    cache: Cache | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *more: object,
    **_: object,
) -> tuple[object, ...]:
    """Replace `Attention._adjust_key_value_for_inference` of megatron-core 0.16 to 0.19.

    Query, key and value are [new tokens, rows, heads, channels]; the rotary embedding is the first of `more`.
    """
    if cache is None:
        return query, key, value, more[0], layer.attn_mask_type, None
    if more[0] is not None:  # else a layer without rotary embedding
        both, heads = torch.cat((query, key), 2), [query.shape[2], key.shape[2]]
        query, key = cache.rotate(both, getattr(layer, "rotary_table", 0)).split(heads, 2)
    key, value = cache.append(layer.layer_number, key, value)
    return query, key, value, None, layer.attn_mask_type, None  # None: the rotary embedding has been applied


Step = Callable[[Tensor, Cache], Tensor]


class GraphedStep:
    """`step` as a CUDA graph, captured again when rows leave or `end` grows; calls overwrite the result."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._rows = self._end = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens = self._result = torch.empty(0)

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Replay the graph for `tokens` [rows]."""
        # New row counts may need new kernels: the first such step runs eagerly, so that they are loaded and
        # planned before a capture. A longer cache needs none, and is captured at once.
        if len(tokens) != self._rows:
            self._rows, self._end, self._graph = len(tokens), 0, None
            return self._step(tokens, cache)
        if cache.end != self._end or self._graph is None:
            self._end, self._tokens, self._graph = cache.end, tokens.clone(), torch.cuda.CUDAGraph()
            # Other threads, such as NCCL's watchdog, may make CUDA calls meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._result = self._step(self._tokens, cache)
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._result
