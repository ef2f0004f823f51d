"""The loss of a microbatch and the learning rate, worked out by hand."""

import pytest
import torch

from megatron_mathcpt.config.experiment import OptimizerSection, ScheduleSection
from megatron_mathcpt.train.datasets import Batch
from megatron_mathcpt.train.step import learning_rate, masked_loss


def batch(mask: torch.Tensor, sources: torch.Tensor) -> Batch:
    tokens = torch.zeros(mask.shape, dtype=torch.int64)
    return Batch(tokens, tokens, mask, tokens, sources=sources)


LOSSES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
MASK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def test_masked_loss_sums_over_trained_tokens_only() -> None:
    sources = torch.tensor([[2, 2, 2], [0, 0, 0]])
    total, count, report = masked_loss(batch(MASK, sources), 3, LOSSES)
    assert total.item() == 1 + 4 + 32
    assert (count.item(), count.dtype) == (3, torch.int32)
    assert report.tolist() == [37.0, 3.0, 32.0, 1.0, 0.0, 0.0, 5.0, 2.0]


def test_pools_that_are_not_asked_for_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the gate on the first loss: adding to rows that are not there ends a GPU's process, no CPU's."""

    def on_a_gpu(self: torch.Tensor, _: int, index: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
        assert index.max() < len(self)
        return self

    monkeypatch.setattr(torch.Tensor, "index_add", on_a_gpu)
    _, _, report = masked_loss(batch(MASK, torch.tensor([[2, 2, 2], [0, 0, 0]])), 0, LOSSES)
    assert report.tolist() == [37.0, 3.0]


OPTIMIZER = OptimizerSection(lr=1.0, min_lr=0.2)


@pytest.mark.parametrize(
    ("style", "samples", "expected"),
    [
        ("constant", 5, 0.5),  # half of the warm-up of 10
        ("constant", 10, 1.0),
        ("constant", 100, 1.0),
        ("linear", 10, 1.0),
        ("linear", 55, 0.6),  # half way down: (1.0 + 0.2) / 2
        ("linear", 100, 0.2),
        ("cosine", 32.5, 0.2 + 0.8 * 0.853553390593),  # a quarter of the way: (1 + cos(pi / 4)) / 2
        ("cosine", 55, 0.6),
        ("cosine", 100, 0.2),
        ("wsd", 80, 1.0),
        ("wsd", 90, 0.6),  # half of the last fifth
        ("wsd", 100, 0.2),
        ("linear", 130, 0.2),  # past the end
    ],
)
def test_learning_rate(style: str, samples: float, expected: float) -> None:
    schedule = ScheduleSection.model_validate(
        {"lr_decay_style": style, "lr_warmup_fraction": 0.1, "lr_wsd_decay_fraction": 0.2}
    )
    assert learning_rate(schedule, OPTIMIZER, samples, 100) == pytest.approx(expected)  # type: ignore[arg-type]


def test_no_warm_up_starts_high() -> None:
    schedule = ScheduleSection(lr_decay_style="linear")
    assert learning_rate(schedule, OPTIMIZER, 1, 100) == pytest.approx(0.992)
