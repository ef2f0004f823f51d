"""Learning rates worked out by hand, for 100 samples, lr 1.0 and min_lr 0.2."""

import pytest

from megatron_mathcpt.config.experiment import OptimizerSection, ScheduleSection
from megatron_mathcpt.train.step import learning_rate

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
