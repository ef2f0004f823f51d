"""The loss of a microbatch, worked out by hand."""

import pytest
import torch

from megatron_mathcpt.train.datasets import Batch
from megatron_mathcpt.train.step import masked_loss


def batch(mask: torch.Tensor, sources: torch.Tensor | None = None) -> Batch:
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    return Batch(tokens, tokens, mask, tokens, sources=sources)


LOSSES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
MASK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def test_masked_loss_sums_over_trained_tokens_only() -> None:
    total, count, report = masked_loss(batch(MASK), 0, LOSSES)
    assert total.item() == 1 + 4 + 32
    assert (count.item(), count.dtype) == (3, torch.int32)
    assert report.tolist() == [37.0, 3.0]


def test_losses_by_source() -> None:
    sources = torch.tensor([[2, 2, 2], [0, 0, 0]])
    _, _, report = masked_loss(batch(MASK, sources), 3, LOSSES)
    assert report.tolist() == [37.0, 3.0, 32.0, 1.0, 0.0, 0.0, 5.0, 2.0]


def test_pools_that_are_not_asked_for_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the gate on the first loss: adding to rows that are not there ends a GPU's process, no CPU's."""

    def on_a_gpu(self: torch.Tensor, _: int, index: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
        assert index.max() < len(self)
        return self

    monkeypatch.setattr(torch.Tensor, "index_add", on_a_gpu)
    _, _, report = masked_loss(batch(MASK, torch.tensor([[2, 2, 2], [0, 0, 0]])), 0, LOSSES)
    assert report.tolist() == [37.0, 3.0]
