"""Blend arithmetic against the study's own numbers and worked-out ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mathcpt.data.blend import Share, plan_blend, with_replay
from megatron_mathcpt.errors import ConfigError

BILLION = 10**9


def test_base2_of_the_study() -> None:
    """Base2 (arXiv 2501.14002): 48.3 B general, 7.5 B math corpus, 7.2 B problems, 104.9 B tokens drawn."""
    pools = {
        "general": 48_300_000_000,
        "math_corpus": 7_500_000_000,
        "problem_solving": 7_200_000_000,
    }
    budget = 25_000 * 1024 * 4096
    plan = plan_blend(budget, {name: float(size) for name, size in pools.items()}, pools, {})
    assert budget == 104_857_600_000
    assert sum(share.tokens for share in plan.values()) == budget
    assert plan["problem_solving"].weight == pytest.approx(7.2 / 63)
    # one ratio for all: 104.8576 / 63 = 1.6644 passes over every pool
    assert [round(share.epochs, 4) for share in plan.values()] == [1.6644, 1.6644, 1.6644]


def test_hand_worked_split() -> None:
    plan = plan_blend(1000, {"a": 2, "b": 1}, {"a": 1000, "b": 111}, {"b": 3.01})
    assert plan == {"a": Share(2 / 3, 667, 0.667), "b": Share(1 / 3, 333, 3.0)}


def test_a_broken_cap_names_the_source_and_the_share_that_fits() -> None:
    # cap 2 of 100 tokens = 200 of 1000
    with pytest.raises(
        ConfigError, match=r"blend\.b: 333 tokens are 3\.33 epochs.*cap of 2.*at most 0\.2000"
    ):
        plan_blend(1000, {"a": 2, "b": 1}, {"a": 1000, "b": 100}, {"b": 2})


@pytest.mark.parametrize(
    ("ratios", "available", "caps", "message"),
    [
        ({"a": 0}, {"a": 1}, {}, r"blend\.a: 0 must be above 0"),
        ({"a": float("nan")}, {"a": 1}, {}, r"blend\.a"),
        ({"a": 1}, {}, {}, r"blend\.a: the source has no tokens"),
        ({"a": 1}, {"a": 1}, {"c": 1}, r"max_epochs\.c"),
    ],
)
def test_refusals(
    ratios: dict[str, float], available: dict[str, int], caps: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_blend(10, ratios, available, caps)


def test_replay_takes_its_share_first() -> None:
    assert with_replay({"math": 3, "problems": 1}, {"general": 0.2}) == pytest.approx(
        {"general": 0.2, "math": 0.6, "problems": 0.2}
    )
    for replay in ({"general": 1.0}, {"math": 0.2}, {"general": 0.0}):
        with pytest.raises(ConfigError):
            with_replay({"math": 1}, replay)


@settings(deadline=None)
@given(st.integers(1, 10**13), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_tokens_always_sum_to_the_budget(budget: int, ratios: list[float]) -> None:
    named = {str(i): ratio for i, ratio in enumerate(ratios)}
    plan = plan_blend(budget, named, dict.fromkeys(named, BILLION), {})
    assert sum(share.tokens for share in plan.values()) == budget
    for name, share in plan.items():
        assert abs(share.tokens - budget * ratios[int(name)] / sum(ratios)) <= 1 + budget * 1e-12
