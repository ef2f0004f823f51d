"""What each source of a microanneal is worth per token: its gains over the rest, by the tokens really seen.

A candidate is a run compared with a baseline NAME-rest (config/data_search.py); its tokens are those of pools
that the baseline lacks. Differences of accuracy and bits per byte have the intervals and Holm-corrected
verdicts of their paired tests (report/comparison.py); a validation loss is one number and has none.
"""

import math
from collections.abc import Sequence

from megatron_mathcpt.config.data_search import REST
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.report.comparison import POOLED, Comparison
from megatron_mathcpt.report.study import Runs

UNITS = {"billion": 1e9, "million": 1e6}
LEAST = 1e8  # tokens of the candidate with most; with fewer the unit is a million


def rank_sources(runs: Runs, comparisons: Sequence[Comparison]) -> list[JsonObject]:
    """For each baseline its candidates, best first; `runs` are those of report.json.

    The order is by bits per byte where all have them, which decide more on few items, else by accuracy.
    """
    found = []
    for baseline in dict.fromkeys(test.first for test in comparisons if test.first.endswith(REST)):
        tests = [test for test in comparisons if test.first == baseline and test.task == POOLED]
        sources, rest = {test.second: runs[test.second]["tokens_by_source"] for test in tests}, runs[baseline]
        own = {run: pools.keys() - rest["tokens_by_source"] for run, pools in sources.items()}
        seen = {run: sum(sources[run][pool]["seen"] for pool in pools) for run, pools in own.items()}
        unit = "billion" if max(seen.values()) >= LEAST else "million"
        rows = [_worth(test, runs, seen[test.second], UNITS[unit]) for test in tests if seen[test.second]]
        by = "bits" if all(row["bits"] for row in rows) else "accuracy"
        rows.sort(key=lambda row: row[by]["difference"], reverse=by == "accuracy")
        found += [{"baseline": baseline, "unit": unit, "by": by, "rows": rows}] if rows else []
    return found


def _worth(test: Comparison, runs: Runs, tokens: int, unit: float) -> JsonObject:
    """Differences for each `unit` of the candidate's own `tokens`."""

    def per(value: float) -> float | None:
        return None if math.isnan(value) else value / tokens * unit

    def measure(found: Comparison) -> JsonObject:
        ends = {"difference": per(found.difference), "low": per(found.low), "high": per(found.high)}
        return ends | {"verdict": found.verdict}

    before, after = (runs[name]["final_validation"] for name in (test.first, test.second))
    both = [pool for pool in after if None not in (after[pool], before.get(pool))]
    losses = {pool: per(after[pool] - before[pool]) for pool in both}
    measures = {"accuracy": measure(test), "bits": test.bits and measure(test.bits)}
    return {"run": test.second, "tokens": tokens, "losses": losses} | measures
