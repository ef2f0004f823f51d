"""Against scipy, published worked examples, and numbers worked out by hand."""

import math
import time
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from megatron_mathcpt import statistics
from megatron_mathcpt.statistics import compare_means, compare_paired, mcnemar_p_value, wilcoxon_signed_rank


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
    # of 300 items without a difference: d = (1.959964 + 0.841621 sqrt(1 - d))² / 300 = 2.790594² / 300
    least = statistics.minimum_detectable_difference(300, 0.0)
    assert least == pytest.approx(0.0259580, abs=1e-6)
    assert least == pytest.approx((1.959964 + 0.841621 * math.sqrt(1 - least)) ** 2 / 300, rel=1e-6)
    assert statistics.minimum_detectable_difference(300, 0.02) == least
    assert statistics.minimum_detectable_difference(300, least) == pytest.approx(least, rel=1e-6)
    assert math.isnan(statistics.minimum_detectable_difference(3, 1.0))


def _values(items: int, shift: float, seed: int = 3) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    first = generator.gamma(2, 0.5, items)
    return first.tolist(), (first + generator.normal(shift, 0.2, items)).tolist()


@pytest.mark.parametrize(("items", "shift"), [(25, -0.06), (300, -0.02), (300, 0.0), (1000, 0.015)])
def test_paired_bootstrap_equals_an_independent_one_and_scipy(items: int, shift: float) -> None:
    first, second = _values(items, shift)
    found = compare_means([(first, second)])[0]
    change = np.subtract(second, first)
    generator = np.random.default_rng(99)
    means = np.array([generator.choice(change, items).mean() for _ in range(20_000)])
    error = change.std(ddof=1) / math.sqrt(items)  # a quantile of 10,000 means varies by about 0.03 of it
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1 * error)
    theirs = stats.bootstrap((change,), np.mean, method="percentile").confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * error)
    tail = min(np.mean(means <= 0), np.mean(means >= 0))
    assert found.p_value == pytest.approx(min(1, 2 * tail), abs=0.02)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    assert (found.mean_first, found.mean_second) == pytest.approx((np.mean(first), np.mean(second)))
    assert found.difference == pytest.approx(change.mean())
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(change).pvalue)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * error, rel=1e-6)
    assert compare_means([(first, second)])[0] == found  # seeded


def test_pairs_in_one_call_are_compared_as_alone_and_resolve_holms_correction() -> None:
    pairs = [_values(40, -0.5, seed) for seed in range(3)] + [_values(30, 0.5)]
    for found, pair in zip(compare_means(pairs), pairs, strict=True):
        alone = vars(compare_means([pair])[0])
        assert vars(found) == pytest.approx(alone, rel=1e-9)
    # 300 comparisons, all as clear as can be, are found by Holm's correction: 2 / 30,001 * 300 = 0.02
    many = compare_means([pairs[0]] * 300)
    assert max(statistics.holm([found.p_value for found in many])) == pytest.approx(600 / 30_001)
    with pytest.raises(ValueError, match="3 and 2 items"):
        compare_means([([1.0] * 3, [1.0] * 2)])


def test_differences_without_spread() -> None:
    same, moved, one = compare_means([([1.0, 2.0], [1.0, 2.0]), ([1.0] * 6, [2.0] * 6), ([1.0], [2.0])])
    assert (same.p_value, same.wilcoxon, same.low, same.high, same.detectable) == (1, 1, 0, 0, 0)
    # all 6 of one sign: 2 of 2^6 signs are as extreme
    assert (moved.difference, moved.low, moved.wilcoxon, moved.rank_difference) == (1, 1, 2 / 64, 1)
    assert (one.difference, one.wilcoxon, one.p_value) == (1, 1, 1)
    assert all(map(math.isnan, (one.low, one.high, one.detectable)))


@pytest.mark.parametrize("items", [1, 2, 6, 30, 50, 51, 400])
def test_wilcoxon_equals_scipy(items: int) -> None:
    change = np.random.default_rng(items).normal(0.3, 1, items)
    p, ranks = wilcoxon_signed_rank(change)
    assert p == pytest.approx(stats.wilcoxon(change).pvalue, rel=1e-9)
    order = stats.rankdata(abs(change))
    assert ranks == pytest.approx((order * np.sign(change)).sum() / order.sum())
    assert wilcoxon_signed_rank(-change) == pytest.approx((p, -ranks))


def test_wilcoxon_with_ties_and_zeros() -> None:
    change = [0.0, 1, 1, -1, 2, 2, 2, -3, 0, 4]
    signed = np.array([value for value in change if value])
    ranks = stats.rankdata(abs(signed))
    sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=len(signed))])
    above = ranks[signed > 0].sum()
    expected = 2 * min(np.mean(sums >= above), np.mean(sums <= above))
    assert wilcoxon_signed_rank(change)[0] == pytest.approx(expected)
    many = np.round(np.random.default_rng(5).normal(0.2, 1, 300), 1)
    assert (many == 0).any()
    assert wilcoxon_signed_rank(many)[0] == pytest.approx(
        stats.wilcoxon(many, method="approx").pvalue, rel=1e-9
    )


@pytest.mark.parametrize(("items", "seconds"), [(300, 0.05), (7000, 2.0)])
def test_the_bootstrap_is_fast(items: int, seconds: float) -> None:
    pair = _values(items, 0.01)
    taken = []
    for _ in range(3):
        start = time.process_time()
        compare_means([pair])
        taken.append(time.process_time() - start)
    assert min(taken) < seconds


def test_distributions_by_hand() -> None:
    found = statistics.describe([3, 8, 3, 0, 8, 21, 20], int.bit_length, str)
    assert (found["total"], found["mean"]) == (7, 9)
    assert [*found["quantiles"].values()] == [0, 0, 3, 8, 20, 21, 21]
    assert found["bars"] == [("0", 1), ("1", 0), ("2", 2), ("3", 0), ("4", 2), ("5", 2)]
