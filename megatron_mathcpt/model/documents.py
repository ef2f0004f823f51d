"""Where the documents of packed samples lie, for the two kinds of attention that stay within them.

One description, a row of document numbers a sample, becomes a dense mask (`forbidden`, for PyTorch's
attention) or the lengths that packed attention takes (`Documents`, for Transformer Engine's).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from megatron.core.packed_seq_params import PackedSeqParams


def context_positions(seq_length: int, size: int, rank: int) -> torch.Tensor:
    """Positions that context-parallel rank `rank` of `size` holds: chunks `rank` and `2 size - 1 - rank`.

    Of 2 x size equal chunks each rank gets an early and a late one, so that causal attention costs all the
    same (Megatron-Core's order, which its rotary embedding follows).
    """
    chunks = torch.arange(seq_length).tensor_split(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def forbidden(documents: torch.Tensor, size: int = 1, rank: int = 0) -> torch.Tensor:
    """Megatron-Core's attention mask [samples, 1, queries, keys], True where attention is forbidden.

    `documents` numbers the documents of whole samples, [samples, sequence]. Queries are those of
    context-parallel rank `rank` of `size`, keys the whole sequence in the order of the ranks.
    """
    length = documents.shape[1]
    held = [context_positions(length, size, other) for other in range(size)]
    keys, queries = torch.cat(held), held[rank]
    later = keys[None, :] > queries[:, None]
    other = documents[:, queries, None] != documents[:, None, keys]
    return (later.to(documents.device) | other).unsqueeze(1)


@dataclass(frozen=True)
class Span:
    """Consecutive queries, of one document after the other, and the keys they may see, up to their own.

    `queries` is a part of this rank's tokens, `keys` of all, rows of a microbatch one after the other.
    `query_ends` and `key_ends` are packed attention's cu_seqlens (int32, the first 0); `longest` and
    `longest_keys` bounds on what lies between two of them.
    """

    queries: slice
    keys: slice
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest: int
    longest_keys: int

    @property
    def aligned(self) -> bool:
        """Whether the first query may see its own key alone, so that both ends are the same."""
        return bool(self.queries.stop - self.queries.start == self.keys.stop - self.keys.start)


class Documents(PackedSeqParams):  # type: ignore[misc]
    """What Megatron-Core hands through its layers to `DocumentAttention`, beside which it changes nothing.

    Positions are rotated along the whole sample, which is the same: rotary positions count by difference.
    `order` brings the gathered parts of all context-parallel ranks into the sample's order.
    """

    def __init__(self, length: int, spans: Iterable[Span], order: torch.Tensor | None) -> None:
        super().__init__(qkv_format="sbhd", max_seqlen_q=length, max_seqlen_kv=length)
        self.spans, self.order = tuple(spans), order

    def to(self, device: torch.device) -> "Documents":
        """The same, its tensors on `device`."""
        move = partial(torch.Tensor.to, device=device, non_blocking=True)
        spans = (
            replace(span, query_ends=move(span.query_ends), key_ends=move(span.key_ends))
            for span in self.spans
        )
        return Documents(self.max_seqlen_q, spans, None if self.order is None else move(self.order))


def packed(documents: torch.Tensor, size: int = 1, rank: int = 0) -> Documents:
    """The spans of `documents` [samples, sequence] that context-parallel rank `rank` of `size` attends from.

    Without context parallelism all samples are one span; with it each sample has the rank's two chunks.
    """
    samples, length = documents.shape
    # Where documents start in the samples one after the other, each of which starts one.
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents.diff() != 0
    starts = new.flatten().nonzero().flatten()
    if size == 1:
        return Documents(length, [_span(starts, 0, samples * length, 0)], None)
    count = length // (2 * size)
    begins = [row * length + place * count for row in range(samples) for place in (rank, 2 * size - 1 - rank)]
    spans = (_span(starts, begin, count, index * count) for index, begin in enumerate(begins))
    order = torch.cat([context_positions(length, size, other) for other in range(size)]).argsort()
    return Documents(length, spans, order)


def _span(starts: torch.Tensor, begin: int, count: int, held_at: int) -> Span:
    """The span of `count` tokens from `begin` of all, held by its rank from `held_at`."""
    end = begin + count
    first_key = int(starts[starts <= begin][-1])
    inside = starts[(starts > begin) & (starts < end)].tolist()
    query_ends, key_ends = (torch.tensor([first, *inside, end]) - first for first in (begin, first_key))
    return Span(
        slice(held_at, held_at + count),
        slice(first_key, end),
        query_ends.int(),
        key_ends.int(),
        _bound(query_ends),
        _bound(key_ends),
    )


def _bound(ends: torch.Tensor) -> int:
    """The longest document, rounded up to a power of two: cuDNN makes a plan for each bound it is given."""
    return 1 << int(ends.diff().max() - 1).bit_length()
