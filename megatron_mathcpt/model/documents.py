"""Describe the documents of packed samples to the two kinds of attention that stay within them.

A row of document numbers per sample becomes a dense mask (`document_mask`, for PyTorch's attention) or the
sequence lengths that packed attention takes (`Documents`, for Transformer Engine's).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from megatron.core.packed_seq_params import PackedSeqParams


def context_positions(seq_length: int, size: int, rank: int) -> torch.Tensor:
    """Positions of context-parallel rank `rank` of `size`: chunks `rank` and `2 size - 1 - rank`."""
    # An early and a late one for each, so that causal attention costs all ranks the same (Megatron-Core's
    # order, which its rotary embedding assumes).
    chunks = torch.arange(seq_length).tensor_split(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def document_mask(documents: torch.Tensor, size: int = 1, rank: int = 0) -> torch.Tensor:
    """Megatron-Core's attention mask [samples, 1, queries, keys], True where attention is forbidden.

    From document numbers [samples, sequence]. Queries are those of context-parallel rank `rank` of `size`,
    keys the whole sequence in the order of the ranks.
    """
    length = documents.shape[1]
    positions = [context_positions(length, size, other) for other in range(size)]
    keys, queries = torch.cat(positions), positions[rank]
    later = keys[None, :] > queries[:, None]
    other = documents[:, queries, None] != documents[:, None, keys]
    return (later.to(documents.device) | other).unsqueeze(1)


@dataclass(frozen=True)
class Span:
    """Consecutive queries, and the keys that they may attend to, up to the last query's own."""

    queries: slice  # of this rank's tokens, a microbatch's rows concatenated
    keys: slice  # of all ranks' tokens
    query_ends: torch.Tensor  # packed attention's cu_seqlens: int32, the first 0
    key_ends: torch.Tensor
    longest: int  # its max_seqlens
    longest_keys: int

    @property
    def aligned(self) -> bool:
        """Whether the first query starts a document; else its earlier keys call for a bottom-right mask."""
        return bool(self.queries.stop - self.queries.start == self.keys.stop - self.keys.start)


class Documents(PackedSeqParams):  # type: ignore[misc]
    """Passed by Megatron-Core through its layers to `DocumentAttention`; nothing else may depend on it."""

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
    starts = new.flatten().nonzero().flatten()
    if size == 1:  # one span; else each of the rank's two chunks of each sample
        return Documents(length, [_span(starts, 0, samples * length, 0)], None)
    count = length // (2 * size)
    begins = [row * length + place * count for row in range(samples) for place in (rank, 2 * size - 1 - rank)]
    spans = (_span(starts, begin, count, index * count) for index, begin in enumerate(begins))
    order = torch.cat([context_positions(length, size, other) for other in range(size)]).argsort()
    return Documents(length, spans, order)


def _span(starts: torch.Tensor, begin: int, count: int, local: int) -> Span:
    """The span of `count` tokens from `begin` of all tokens, and from `local` of this rank's."""
    end = begin + count
    first_key = int(starts[starts <= begin][-1])
    inside = starts[(starts > begin) & (starts < end)].tolist()
    queries, keys = slice(local, local + count), slice(first_key, end)
    query_ends, key_ends = (torch.tensor([first, *inside, end]).int() - first for first in (begin, first_key))
    return Span(queries, keys, query_ends, key_ends, _bound(query_ends), _bound(key_ends))


def _bound(ends: torch.Tensor) -> int:
    """Length of the longest document, rounded up to a power of two: cuDNN builds a plan for each bound."""
    return 1 << int(ends.diff().max() - 1).bit_length()
