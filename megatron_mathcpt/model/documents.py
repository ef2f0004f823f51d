"""Describe the documents of packed samples to attention that stays within them.

A row of document numbers per sample becomes the lengths of its documents (`Documents`), from which attention
takes only the pairs that it needs; or, for transformers, a dense mask, 1 GB for a sample of 32,768 tokens.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams


def context_positions(seq_length: int, size: int, rank: int) -> torch.Tensor:
    """Positions of context-parallel rank `rank` of `size`: chunks `rank` and `2 size - 1 - rank`."""
    # An early and a late one for each, so that causal attention costs all ranks the same (Megatron-Core's
    # order, which its rotary embedding assumes).
    chunks = torch.arange(seq_length).tensor_split(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """[samples, 1, queries, keys], True where attention is allowed, from document numbers of each token."""
    return (documents[:, :, None] == documents[:, None, :]).tril_().unsqueeze(1)


@dataclass(frozen=True)
class Span:
    """Consecutive queries, and the keys that they may attend to, up to the last query's own."""

    queries: slice  # of this rank's tokens, a microbatch's rows concatenated
    keys: slice  # of all ranks' tokens
    query_ends: torch.Tensor  # packed attention's cu_seqlens: int32, the first 0
    key_ends: torch.Tensor
    query_sizes: list[int]  # of each document, here and not on the device
    key_sizes: list[int]

    @property
    def longest(self) -> int:
        """The bound of packed attention's max_seqlens, rounded up: cuDNN builds a plan for each."""
        return 1 << (max(self.query_sizes) - 1).bit_length()

    @property
    def longest_keys(self) -> int:
        return 1 << (max(self.key_sizes) - 1).bit_length()

    @property
    def aligned(self) -> bool:
        """Whether the first query starts a document; else its earlier keys call for a bottom-right mask."""
        return self.query_sizes[0] == self.key_sizes[0]


class Documents(PackedSeqParams):  # type: ignore[misc]
    """Passed by Megatron-Core through its layers to our core attention; nothing else may depend on it."""

    def __init__(self, length: int, spans: Iterable[Span], order: torch.Tensor | None) -> None:
        # Not "thd", with which Megatron-Core would rotate positions by document: rotated along the whole
        # sample they give the same attention, which depends on differences only.
        super().__init__(qkv_format="sbhd", max_seqlen_q=length, max_seqlen_kv=length)
        self.spans = tuple(spans)
        self.order = order  # sorts the gathered tokens of all context-parallel ranks by position

    def to(self, device: torch.device) -> "Documents":
        move = partial(torch.Tensor.to, device=device, non_blocking=True)
        spans = (replace(s, query_ends=move(s.query_ends), key_ends=move(s.key_ends)) for s in self.spans)
        return Documents(self.max_seqlen_q, spans, None if self.order is None else move(self.order))


def pack_documents(documents: torch.Tensor, size: int = 1, rank: int = 0) -> Documents:
    """Spans of context-parallel rank `rank` of `size`, from document numbers [samples, sequence]."""
    samples, length = documents.shape
    # Documents' first tokens in the concatenated samples; a sample's first token always is one.
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents.diff() != 0
    starts: list[int] = new.flatten().nonzero().flatten().tolist()
    if size == 1:  # one span; else each of the rank's two chunks of each sample
        return Documents(length, [_span(starts, 0, samples * length, 0)], None)
    count, rest = divmod(length, 2 * size)
    assert not rest, f"{length} tokens over {size} context-parallel ranks"
    begins = [row * length + place * count for row in range(samples) for place in (rank, 2 * size - 1 - rank)]
    spans = (_span(starts, begin, count, index * count) for index, begin in enumerate(begins))
    order = torch.cat([context_positions(length, size, other) for other in range(size)]).argsort()
    return Documents(length, spans, order)


def _span(starts: list[int], begin: int, count: int, local: int) -> Span:
    """The span of `count` tokens from `begin` of all tokens, and from `local` of this rank's."""
    end, low = begin + count, bisect_right(starts, begin)
    first_key, inside = starts[low - 1], starts[low : bisect_left(starts, end)]
    ends = [[first, *inside, end] for first in (begin, first_key)]
    query_ends, key_ends = (torch.tensor(one, dtype=torch.int32) - one[0] for one in ends)
    sizes = ([after - before for before, after in pairwise(one)] for one in ends)
    return Span(slice(local, local + count), slice(first_key, end), query_ends, key_ends, *sizes)
