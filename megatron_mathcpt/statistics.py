"""Uncertainty of benchmark scores: intervals, exact paired tests, families of tests, k draws per item.

Everything is closed-form, so that the package needs no scipy; the tests check against it and by hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


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


def accuracy_standard_error(correct: int, items: int) -> float:
    """Standard error of a mean of 0/1 scores, with the n − 1 variance that lm-eval uses; NaN for one item."""
    if items < 2:
        return math.nan
    rate = correct / items
    return math.sqrt(rate * (1 - rate) / (items - 1))


def wilson_interval(correct: int, items: int, confidence: float = 0.95) -> tuple[float, float]:
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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; family-wise error without independence."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


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

    `discordant` is the share ψ of items on which the models differ.
    """
    # Normal approximation (Connor, Biometrics 43, 1987): the d that solves
    # d·√n = z(0.975)·√ψ + z(0.8)·√(ψ − d²), the larger root of its square, at most ψ: d cannot exceed it.
    a, b = _normal_quantile(0.95) * math.sqrt(discordant), NormalDist().inv_cdf(0.8)
    root, precision = math.sqrt(items), items + b * b
    if discordant * root <= a + b * math.sqrt(discordant - discordant**2):
        return discordant
    return (a * root + b * math.sqrt(precision * discordant - a * a)) / precision


def _normal_quantile(confidence: float) -> float:
    """z with P(|Z| < z) = confidence."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
