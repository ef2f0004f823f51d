"""The loss of a microbatch, worked out by hand."""

import torch

from megatron_mathcpt.train.step import masked_loss


def test_masked_loss_sums_over_trained_tokens_only() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    total, count, report = masked_loss(mask, losses)
    assert total.item() == 1 + 4 + 32
    assert (count.item(), count.dtype) == (3, torch.int32)
    assert report.tolist() == [37.0, 3.0]
