"""What each source of a microanneal is worth per token: its gains over the rest, by the tokens really seen.

A candidate is a run compared with the baseline; its tokens are those of pools that the baseline lacks.
Differences of accuracy and bits per byte have the intervals and Holm-corrected verdicts of their paired tests
(report/comparison.py); a validation loss is one number and has none.
"""

import math
from collections.abc import Sequence

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.report.comparison import POOLED, BitsComparison, Comparison
from megatron_mathcpt.report.study import Runs

UNITS = {"billion": 1e9, "million": 1e6}
LEAST_BILLIONS = 0.1  # of the candidate with most; with fewer the unit is a million


def rank_sources(baseline: str, runs: Runs, comparisons: Sequence[Comparison]) -> JsonObject:
    """The candidates compared with `baseline`, best first; `runs` are those of report.json.

    The order is by bits per byte where all have them, which decide more on few items, else by accuracy.
    Raises `EvaluationError` if no run that saw other pools is compared with the baseline.
    """
    tests = [row for row in comparisons if row.first == baseline and row.task == POOLED]
    seen = {test.second: _own_tokens(runs[test.second], runs[baseline]) for test in tests}
    if not (most := max(seen.values(), default=0)):
        raise EvaluationError(f"--rank {baseline}: no run with pools of its own is compared with it")
    unit = "billion" if most >= LEAST_BILLIONS * UNITS["billion"] else "million"
    rows: list[JsonObject] = [
        {"run": test.second, "tokens": seen[test.second]}
        | _worth(test, runs[test.second], runs[baseline], seen[test.second] / UNITS[unit])
        for test in tests
        if seen[test.second]
    ]
    by_bits = all(row["bits"] for row in rows)
    rows.sort(key=lambda row: row["bits"]["difference"] if by_bits else -row["accuracy"]["difference"])
    by = "bits per byte" if by_bits else "accuracy"
    return {"baseline": baseline, "unit": unit, "by": by, "rows": rows}


def _own_tokens(run: JsonObject, rest: JsonObject) -> int:
    sources = run["tokens_by_source"]
    return sum(sources[pool]["seen"] for pool in sources.keys() - rest["tokens_by_source"].keys())


def _worth(test: Comparison, run: JsonObject, rest: JsonObject, size: float) -> JsonObject:
    """Differences for each unit, of which the candidate saw `size`."""

    def measure(found: Comparison | BitsComparison) -> JsonObject:
        ends = {"difference": found.difference, "low": found.low, "high": found.high}
        known = {end: None if math.isnan(value) else value / size for end, value in ends.items()}
        return known | {"verdict": found.verdict}

    before, after = (of["final_validation"] for of in (rest, run))
    both = [pool for pool in after if None not in (after[pool], before.get(pool))]
    losses = {pool: (after[pool] - before[pool]) / size for pool in both}
    return {"accuracy": measure(test), "bits": test.bits and measure(test.bits), "losses": losses}
