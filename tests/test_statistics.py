"""Against scipy, published worked examples, and numbers worked out by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from megatron_mathcpt import statistics
from megatron_mathcpt.statistics import compare_paired, mcnemar_p_value


def test_standard_error_equals_scipy() -> None:
    assert statistics.accuracy_standard_error(17, 40) == pytest.approx(stats.sem([1] * 17 + [0] * 23))
    assert math.isnan(statistics.accuracy_standard_error(1, 1))


@pytest.mark.parametrize(("correct", "items"), [(0, 10), (10, 10), (1, 3), (528, 1319)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(correct: int, items: int, confidence: float) -> None:
    expected = stats.binomtest(correct, items).proportion_ci(confidence, method="wilson")
    found = statistics.wilson_interval(correct, items, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (5, 5), (3, 9), (59, 121), (1, 700)])
def test_mcnemar_equals_binomial_test(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    expected = stats.binomtest(only_first, total).pvalue if total else 1.0
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def _outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], ...]:
    counts = (both, first, second, neither)
    patterns = ((True, True, False, False), (True, False, True, False))
    return tuple(np.repeat(pattern, counts).tolist() for pattern in patterns)


def test_paired_comparison_by_hand_and_against_newcombes_table() -> None:
    # Newcombe 1998, table II, method 10: (a, b, c, d) = (36, 12, 2, 0) gives 0.0569 to 0.3404 for b − c.
    result = compare_paired(*_outcomes(36, 2, 12, 0))
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    # 1 of 6 discordant: 2 * (1 + 6) / 64.
    assert compare_paired(*_outcomes(2, 1, 5, 3)).p_value == pytest.approx(14 / 64)
    equal = compare_paired([True, False, True], [True, False, True])
    assert (equal.difference, equal.p_value) == (0.0, 1.0)
    assert equal.low < 0 < equal.high
    swapped = compare_paired(*_outcomes(36, 12, 2, 0))
    assert (swapped.low, swapped.high, swapped.p_value) == pytest.approx(
        (-result.high, -result.low, result.p_value)
    )
    with pytest.raises(ValueError, match="3 and 2 items"):
        compare_paired([True] * 3, [True] * 2)


def test_paired_interval_covers() -> None:
    generator = np.random.default_rng(1)
    cells = np.array([0.3, 0.08, 0.15, 0.47])
    drawn = [_outcomes(*map(int, counts)) for counts in generator.multinomial(120, cells, size=400)]
    results = [compare_paired(*outcomes) for outcomes in drawn]
    covered = np.mean([result.low <= cells[2] - cells[1] <= result.high for result in results])
    assert 0.92 <= covered <= 0.98


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; then made monotone: 0.04 is raised to 0.06.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("draws", "correct"), [(5, 0), (5, 1), (6, 3), (6, 6)])
def test_pass_at_k_is_the_mean_over_all_subsets(draws: int, correct: int) -> None:
    outcomes = [index < correct for index in range(draws)]
    for k in range(1, draws + 1):
        expected = np.mean([any(subset) for subset in combinations(outcomes, k)])
        assert statistics.pass_at_k(draws, correct, k) == pytest.approx(expected)
    with pytest.raises(ValueError, match="pass@7"):
        statistics.pass_at_k(6, 3, 7)


def test_scores_of_k_draws_by_hand() -> None:
    # Two items of four draws, 2 and 0 right: averages 0.5 and 0; pass@2 = 1 - C(2,2)/C(4,2) = 5/6 and 0.
    outcomes = [[True, False, True, False], [False] * 4]
    scores = statistics.score_samples(outcomes, [True, False])
    means = {"avg@4": 0.25, "pass@1": 0.25, "pass@2": 5 / 12, "pass@4": 0.5, "maj@4": 0.5}
    assert {name: mean for name, (mean, _) in scores.items()} == pytest.approx(means)
    assert list(scores) == list(means)
    # The error is that of two numbers, clustered by item, not of eight: half their range.
    assert scores["avg@4"][1] == pytest.approx(0.25)
    assert scores["pass@2"][1] == pytest.approx(5 / 12)


def test_minimum_detectable_difference_has_its_power() -> None:
    items, discordant = 300, 0.3
    difference = statistics.minimum_detectable_difference(items, discordant)
    generator = np.random.default_rng(2)
    cells = [(discordant - difference) / 2, (discordant + difference) / 2, 1 - discordant]
    drawn = generator.multinomial(items, cells, size=2000).tolist()
    found = [mcnemar_p_value(first, second) < 0.05 for first, second, _ in drawn]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert statistics.minimum_detectable_difference(4, 0.1) == 0.1
