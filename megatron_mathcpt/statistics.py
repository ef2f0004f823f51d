"""Uncertainty of scores: intervals, exact paired tests, families of tests, k draws per item; distributions.

All is closed-form but the paired bootstrap, of a fixed seed: no scipy is needed, with which tests compare.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist, correlation
from typing import Any

import numpy as np
from numpy.typing import NDArray

_QUANTILES = {"least": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1.0}
RESAMPLES = 10_000
_DRAWN = 1 << 17  # indices of a block of resamples, which fit the cache
_EXACT = 50  # pairs, as scipy: beyond, Wilcoxon's statistic is normal
_Values = Sequence[float]
_Summary = dict[str, Any]


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same `n` items; `difference` is second − first in accuracy, with its interval."""

    n: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class PairedMeans:
    """Two models' values on the same `n` items; `difference` is the mean of second − first.

    `rank_difference` is (W⁺ − W⁻) / (W⁺ + W⁻) of the signed ranks, 1 if all are positive (Kerby 2014).
    """

    n: int
    mean_first: float
    mean_second: float
    difference: float
    low: float
    high: float
    p_value: float  # of the paired bootstrap
    wilcoxon: float  # p-value
    rank_difference: float
    detectable: float  # smallest true difference found with a power of 0.8 at 5 %


def describe(numbers: Iterable[int], slot: Callable[[int], int], label: Callable[[int], str]) -> _Summary:
    """`total`, `mean`, `quantiles` by name, and `bars`: how many numbers are in each `slot`."""
    # Memory depends only on how many different numbers there are. A quantile is the smallest value that at
    # least its share of the numbers do not exceed.
    found, heights = sorted(Counter(numbers).items()), Counter[int]()
    for value, count in found:
        heights[slot(value)] += count
    ends = [0, *accumulate(count for _, count in found)]
    needed = {name: max(1, math.ceil(share * ends[-1] - 1e-9)) for name, share in _QUANTILES.items()}
    return {
        "total": ends[-1],
        "mean": sum(value * count for value, count in found) / max(1, ends[-1]),
        "quantiles": {name: found[bisect_left(ends, n) - 1][0] for name, n in needed.items() if found},
        "bars": [(label(n), heights[n]) for n in range(min(heights), max(heights) + 1)] if found else [],
    }


def accuracy_standard_error(correct: int, items: int) -> float:
    """Standard error of a mean of 0/1 scores, with the n − 1 variance that lm-eval uses; NaN for one item."""
    if items < 2:
        return math.nan
    rate = correct / items
    return math.sqrt(rate * (1 - rate) / (items - 1))


def wilson_interval(correct: float, items: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), without continuity correction."""
    if items == 0:
        return 0.0, 1.0
    z = _normal_quantile(confidence)
    rate = correct / items
    centre = rate + z * z / (2 * items)
    half = z * math.sqrt(rate * (1 - rate) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == items else (centre + half) / scale
    return low, high


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar test on the items that exactly one of two models answers correctly."""
    discordant = only_first + only_second
    smaller = min(only_first, only_second)
    # Binomial with probability 1/2, in integers: exact for any number of items.
    tail = sum(math.comb(discordant, count) for count in range(smaller + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def compare_paired(first: Sequence[bool], second: Sequence[bool]) -> PairedComparison:
    """Compare 0/1 outcomes of two models on the same items, in the same order.

    The 95 % interval is Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17,
    1998, method 10). Raises `ValueError` when the lengths differ or there is no item.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired outcomes of {len(first)} and {len(second)} items: give equally many, >= 1")
    n, both = len(first), sum(bool(a and b) for a, b in zip(first, second, strict=True))
    only_first, only_second = (sum(map(bool, outcomes)) - both for outcomes in (first, second))
    low, high = _newcombe(both, only_first, only_second, n)
    p_value = mcnemar_p_value(only_first, only_second)
    return PairedComparison(n, only_first, only_second, (only_second - only_first) / n, low, high, p_value)


def _newcombe(both: int, only_first: int, only_second: int, items: int) -> tuple[float, float]:
    p2, p1 = (both + only_second) / items, (both + only_first) / items
    (l2, u2), (l1, u1) = (wilson_interval(both + only, items) for only in (only_second, only_first))
    neither = items - both - only_first - only_second
    margins = (both + only_first) * (both + only_second)
    margins *= (only_first + neither) * (only_second + neither)
    cross = both * neither - only_first * only_second
    # Method 10 applies the continuity correction only to positive association.
    corrected = max(0.0, cross - items / 2) if cross > 0 else cross
    phi = corrected / math.sqrt(margins) if margins else 0.0
    below = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    above = (u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2
    return p2 - p1 - math.sqrt(max(below, 0.0)), p2 - p1 + math.sqrt(max(above, 0.0))


def compare_means(pairs: Sequence[tuple[_Values, _Values]], tests: int = 0) -> list[PairedMeans]:
    """Compare each (first, second): the values of two models on the same items, in the same order.

    The 95 % interval is the percentile interval of `RESAMPLES` means over items drawn with replacement (Efron
    and Tibshirani 1993, 13.3), and its p-value is two-sided from the same means, so that the two agree. For
    more than 100 `tests`, by default the pairs, there are more resamples: Holm's correction multiplies the
    least p they can give. One item has no interval (NaN), and p 1.
    Raises `ValueError` as `compare_paired` does.
    """
    by_size: dict[int, list[int]] = {}
    resamples = max(RESAMPLES, 100 * (tests or len(pairs)))
    for index, (first, second) in enumerate(pairs):
        if len(first) != len(second) or not first:
            sizes = f"{len(first)} and {len(second)} items"
            raise ValueError(f"paired values of {sizes}: give equally many, >= 1")
        by_size.setdefault(len(first), []).append(index)
    found: dict[int, PairedMeans] = {}
    for indices in by_size.values():
        # Pairs of equal size share their resamples, whose drawing takes most of the time.
        values = np.array([pairs[index] for index in indices], dtype=np.float64)
        resampled = _resampled_means(values[:, 1] - values[:, 0], resamples)
        for row, index in enumerate(indices):
            found[index] = _compare_means(values[row, 0], values[row, 1], resampled[row])
    return [found[index] for index in range(len(pairs))]


def _resampled_means(rows: NDArray[np.float64], resamples: int) -> NDArray[np.float64]:
    """Means of each row over items drawn with replacement, the same for all rows; one line per row."""
    generator, n = np.random.default_rng(0), rows.shape[1]
    means = np.empty((len(rows), resamples))
    for start in range(0, resamples, block := max(1, _DRAWN // n)):
        size = min(block, resamples - start)
        drawn = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[:, start : start + size] = rows @ times.T.astype(np.float64) / n
    return means


def _compare_means(
    first: NDArray[np.float64], second: NDArray[np.float64], resampled: NDArray[np.float64]
) -> PairedMeans:
    change = second - first
    n, spread = len(change), float(np.std(change, ddof=1)) if len(change) > 1 else math.nan
    low, high = np.quantile(resampled, (0.025, 0.975)) if n > 1 else (math.nan, math.nan)
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p_wilcoxon, ranks = wilcoxon_signed_rank(change)
    return PairedMeans(
        n=n,
        mean_first=float(first.mean()),
        mean_second=float(second.mean()),
        difference=float(change.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (1 + tail) / (1 + len(resampled))) if n > 1 else 1.0,
        wilcoxon=p_wilcoxon,
        rank_difference=ranks,
        detectable=(_normal_quantile(0.95) + NormalDist().inv_cdf(0.8)) * spread / math.sqrt(n),
    )


def wilcoxon_signed_rank(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Two-sided p-value of Wilcoxon's signed-rank test, and (W⁺ − W⁻) / (W⁺ + W⁻); zeros are left out.

    Up to 50 differences it is exact, ties included; beyond, normal with the correction for ties.
    """
    signed = np.round(np.asarray(differences, dtype=np.float64), 12)  # 1 − 2/3 and 1/3 are a tie
    signed = signed[signed != 0]
    if not (n := len(signed)):
        return 1.0, 0.0
    _, place, ties = np.unique(np.abs(signed), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(ties) - ties + 1)[place]  # twice the mean rank: a whole number
    total, above = int(doubled.sum()), int(doubled[signed > 0].sum())
    ranks, smaller = (2 * above - total) / total, min(above, total - above)
    if n <= _EXACT:
        # How many of the 2^n signs give each sum of positive ranks: below 2^53, exact.
        ways = np.zeros(total + 1)
        ways[0] = 1.0
        for rank in doubled:
            ways[rank:] += ways[:-rank].copy()
        return min(1.0, 2 * float(ways[: smaller + 1].sum()) / 2.0**n), ranks
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((ties.astype(np.float64) ** 3 - ties).sum()) / 48
    z = (smaller - total / 2) / 2 / math.sqrt(variance)
    return min(1.0, 2 * NormalDist().cdf(z)), ranks


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; family-wise error without independence."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def spearman(first: _Values, second: _Values) -> tuple[float, float, float]:
    """Spearman's rank correlation of n >= 4 pairs, with its 95 % interval; NaN if all of one are equal.

    The interval is Fisher's z with the variance (1 + r²/2) / (n - 3) of Bonett and Wright (Psychometrika 65,
    2000). It has no end where |r| = 1, which counts there as half a step of the grid of ranks less.
    """
    n, ranks = len(first), []
    for values in (first, second):
        _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(ties) - (ties - 1) / 2)[place].tolist())
        if len(ties) == 1:
            return math.nan, math.nan, math.nan
    r, most = correlation(*ranks), 1 - 6 / (n * (n * n - 1))
    z = math.atanh(inside := max(-most, min(most, r)))
    half = _normal_quantile(0.95) * math.sqrt((1 + inside * inside / 2) / (n - 3))
    return r, math.tanh(z - half), math.tanh(z + half)


def pass_at_k(draws: int, correct: int, k: int) -> float:
    """Unbiased probability that one of `k` draws is right: 1 − C(n−c, k) / C(n, k) (Chen 2021)."""
    if not 0 < k <= draws or not 0 <= correct <= draws:
        raise ValueError(f"pass@{k} of {draws} draws, {correct} correct: need 0 < k <= draws >= correct")
    return 1.0 - math.comb(draws - correct, k) / math.comb(draws, k)


def score_samples(
    right: Sequence[Sequence[bool]], majority_right: Sequence[bool]
) -> dict[str, tuple[float, float]]:
    """Scores over k draws per item with their standard errors, clustered by item (NaN for one item).

    `avg@k` is the mean accuracy, `pass@j` (j = 1, 2, 4, ..., k) the unbiased probability that one of j is
    right, `maj@k` the share of items whose most frequent answer is right.
    """
    k, items = len(right[0]), len(right)
    scores = {f"avg@{k}": [sum(item) / k for item in right]}
    sizes = [2**power for power in range(k.bit_length()) if 2**power < k]
    for size in [*sizes, k]:
        scores[f"pass@{size}"] = [pass_at_k(k, sum(item), size) for item in right]
    scores[f"maj@{k}"] = [float(item) for item in majority_right]
    # Over items, each with its mean over draws, which are not independent (Miller 2024, equal clusters).
    spread = {name: np.std(values, ddof=1) if items > 1 else math.nan for name, values in scores.items()}
    return {name: (float(np.mean(v)), float(spread[name] / math.sqrt(items))) for name, v in scores.items()}


def minimum_detectable_difference(items: int, discordant: float) -> float:
    """Smallest true accuracy difference that a paired test at 5 % on `items` detects with a power of 0.8.

    `discordant` is the share ψ of items on which the models differ. Where even ψ in one direction is too few
    to be found, it is the least share that would be found; NaN if there is none, for under four items.
    """
    # Normal approximation (Connor, Biometrics 43, 1987): the d that solves
    # d·√n = z(0.975)·√ψ + z(0.8)·√(ψ − d²), the larger root of its square.
    z, b = _normal_quantile(0.95), NormalDist().inv_cdf(0.8)
    a, root, precision = z * math.sqrt(discordant), math.sqrt(items), items + b * b
    if discordant * root > a + b * math.sqrt(discordant - discordant**2):
        return (a * root + b * math.sqrt(precision * discordant - a * a)) / precision
    # d = ψ: (n + z(0.8)²)·s² + 2·z(0.975)·z(0.8)·s = n − z(0.975)² for s = √(1 − d).
    if items < z * z:
        return math.nan
    s = (math.sqrt((z * b) ** 2 + precision * (items - z * z)) - z * b) / precision
    return 1 - s * s


def _normal_quantile(confidence: float) -> float:
    """z with P(|Z| < z) = confidence."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
