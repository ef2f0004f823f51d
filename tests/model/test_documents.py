"""The two readings of a row of document numbers: a dense mask, and the lengths packed attention takes."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_mathcpt.model.documents import Documents, context_positions, document_mask, pack_documents


def test_lengths_of_a_hand_worked_row() -> None:
    rows = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1]])
    (span,) = pack_documents(rows).spans
    assert span.query_ends.tolist() == span.key_ends.tolist() == [0, 3, 5, 8, 15, 16]
    assert span.query_ends.dtype == torch.int32
    assert (span.queries, span.keys) == (slice(0, 16), slice(0, 16))
    assert (span.longest, span.longest_keys, span.aligned) == (8, 8, True)  # 7 tokens, rounded up


def test_a_late_chunk_sees_the_beginning_of_its_first_document() -> None:
    row = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])
    early, late = pack_documents(row, size=2, rank=0).spans  # positions 0, 1 and 6, 7
    assert (early.queries, early.keys, early.aligned) == (slice(0, 2), slice(0, 2), True)
    assert early.query_ends.tolist() == early.key_ends.tolist() == [0, 2]
    assert (late.queries, late.keys, late.aligned) == (slice(2, 4), slice(3, 8), False)
    assert late.query_ends.tolist() == [0, 1, 2]  # position 6 of document 1, position 7 of document 2
    assert late.key_ends.tolist() == [0, 4, 5]  # positions 3 to 6, and 7
    assert pack_documents(row, 2, 0).order.tolist() == [
        0,
        1,
        4,
        5,
        6,
        7,
        2,
        3,
    ]  # the ranks have 0 1 6 7 and 2 3 4 5


def varlen(documents: Documents, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Packed attention by its definition: document after document, causal from the bottom right."""
    found = []
    for span in documents.spans:
        q, k, v = query[span.queries], key[span.keys], value[span.keys]
        for mine, theirs in zip(pairwise(span.query_ends), pairwise(span.key_ends), strict=True):
            parts = (
                tensor.transpose(0, 1) for tensor in (q[slice(*mine)], k[slice(*theirs)], v[slice(*theirs)])
            )
            rows, columns = int(mine[1] - mine[0]), int(theirs[1] - theirs[0])
            seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
            found.append(F.scaled_dot_product_attention(*parts, attn_mask=seen).transpose(0, 1))
            assert rows <= span.longest
            assert columns <= span.longest_keys
    return torch.cat(found)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_mask_and_lengths_say_the_same(size: int) -> None:
    samples, length, heads, channels = 3, 64, 2, 8
    generator = torch.Generator().manual_seed(5)
    ends = torch.rand(samples, length, generator=generator) < 0.15
    documents = ends.long().cumsum(1)
    sizes = (3, samples, length, heads, channels)
    query, key, value = torch.randn(sizes, generator=generator, dtype=torch.float64)
    for rank in range(size):
        positions = context_positions(length, size, rank)
        keys = torch.cat([context_positions(length, size, other) for other in range(size)])
        q, k, v = (part.transpose(1, 2) for part in (query[:, positions], key[:, keys], value[:, keys]))
        mask = document_mask(documents)[:, :, positions][..., keys]
        dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        described = pack_documents(documents, size, rank)
        if size > 1:
            assert torch.equal(key[:, keys][:, described.order], key)
        by_lengths = varlen(described, *(part.flatten(0, 1) for part in (query[:, positions], key, value)))
        assert torch.allclose(by_lengths, dense.transpose(1, 2).flatten(0, 1), atol=1e-12)


def test_a_window_ends_within_its_document_and_begins_before_a_late_chunk() -> None:
    """Against a mask of all pairs, in a model whose last layer has no window."""
    from megatron_mathcpt.model.attention import SdpaAttention

    config = SimpleNamespace(context_parallel_size=1, window_size=(6, 0), window_attn_skip_freq=[1, 1, 1, 0])
    windowed, full = (SdpaAttention(config, layer) for layer in (3, 4))  # type: ignore[arg-type]
    assert (windowed.window, full.window) == (7, None)
    generator = torch.Generator().manual_seed(5)
    documents = (torch.rand(3, 64, generator=generator) < 0.05).long().cumsum(1)
    query, key, value = torch.randn(3, 64, 3, 2, 8, generator=generator)
    found = windowed(query, key, value, None, packed_seq_params=pack_documents(documents))
    parts = [part.permute(1, 2, 0, 3) for part in (query, key, value)]
    near = torch.ones(64, 64, dtype=torch.bool).triu(-6)
    dense = F.scaled_dot_product_attention(*parts, attn_mask=document_mask(documents) & near)
    assert torch.allclose(found, dense.permute(2, 0, 1, 3).flatten(2), atol=1e-6)
    causal = F.scaled_dot_product_attention(*parts, attn_mask=near.tril())
    late = windowed._attend(parts[0][:, :, 40:], *parts[1:])  # the queries of a late chunk, with all keys
    assert torch.allclose(late, causal[:, :, 40:], atol=1e-6)
