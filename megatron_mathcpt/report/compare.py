"""Which run answers more: paired exact tests on the same items, and one plain sentence for each.

Three families of tests are corrected by Holm, each in itself: all pooled comparisons, all on one task, all on
one subset (school stage or difficulty). The words follow from the corrected p-value alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.report.format import p_value, points
from megatron_mathcpt.report.read import Run
from megatron_mathcpt.statistics import (
    PairedComparison,
    compare_paired,
    holm,
    minimum_detectable_difference,
)

ALPHA = 0.05  # family-wise
POOLED = "all tasks"


@dataclass(frozen=True)
class Comparison:
    """`second` against `first` on the items of `task`; difference (second - first) and interval are shares.

    `detectable` is the smallest true difference that this test finds with 80 % power, given how often the two
    differ.
    """

    second: str
    first: str
    task: str
    n: int
    correct_second: int
    correct_first: int
    only_second: int
    only_first: int
    difference: float
    low: float
    high: float
    detectable: float
    p_value: float
    p_holm: float
    tests: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not distinguishable`, at the family-wise level."""
        if self.p_holm >= ALPHA or self.only_first == self.only_second:
            return "not distinguishable"
        return "better" if self.only_second > self.only_first else "worse"

    @property
    def sentence(self) -> str:
        """The comparison in words, with its figures."""
        where = "" if self.task == POOLED else f" on {self.task}"
        counts = f"{self.correct_second} against {self.correct_first} of {self.n}"
        corrected = f"; {p_value(self.p_holm)} after Holm over {self.tests} tests" if self.tests > 1 else ""
        figures = (
            f"{points(self.difference, sign=True)} points, 95% interval {points(self.low, sign=True)} to "
            f"{points(self.high, sign=True)}; exact McNemar p {p_value(self.p_value, equals=True)}{corrected}"
        )
        words = {
            "better": f"{self.second} answers more than {self.first}{where}",
            "worse": f"{self.second} answers fewer than {self.first}{where}",
            "not distinguishable": f"{self.second} and {self.first} are not distinguishable{where}",
        }
        return f"{words[self.verdict]}: {counts} ({figures})."


def compare_runs(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> tuple[Comparison, ...]:
    """Every pair (second, first) over all tasks both were scored on; then on each task; then on each subset.

    Raises `EvaluationError` if a run of a pair is unknown, was not scored, or shares no task with the other.
    """
    by_name = {run.name: run for run in runs}
    pooled, single, subsets = [], [], []
    for pair in pairs:
        second, first = (_known(by_name, name) for name in pair)
        tasks = [task for task in second.scores if task in first.scores]
        if not tasks:
            raise EvaluationError(
                f"{second.folder / 'evaluation'}: no task in common with {first.name}; "
                "evaluate both runs on the same tasks"
            )
        outcomes = {task: (first.outcomes[task], second.outcomes[task]) for task in tasks}
        pooled.append(_compare(*pair, POOLED, list(outcomes.values())))
        single += [_compare(*pair, task, [outcomes[task]]) for task in tasks]
        if second.scores.keys() == first.scores.keys():
            subsets += [
                _compare(*pair, name, [(first.subsets[name], second.subsets[name])])
                for name in second.subsets
            ]
    return (*_corrected(pooled), *_corrected(single), *_corrected(subsets))


def _known(runs: dict[str, Run], name: str) -> Run:
    if name not in runs:
        raise EvaluationError(f"comparison names run '{name}'; there are: {', '.join(runs)}")
    return runs[name]


def _compare(
    second: str, first: str, task: str, outcomes: Sequence[tuple[dict[str, bool], dict[str, bool]]]
) -> Comparison:
    before = [correct for items, _ in outcomes for correct in items.values()]
    after = [correct for _, items in outcomes for correct in items.values()]
    test: PairedComparison = compare_paired(before, after)
    return Comparison(
        second=second,
        first=first,
        task=task,
        n=test.items,
        correct_second=sum(after),
        correct_first=sum(before),
        only_second=test.only_second,
        only_first=test.only_first,
        difference=test.difference,
        low=test.low,
        high=test.high,
        detectable=minimum_detectable_difference(
            test.items, (test.only_first + test.only_second) / test.items
        ),
        p_value=test.p_value,
        p_holm=test.p_value,
        tests=1,
    )


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        replace(comparison, p_holm=p, tests=len(comparisons))
        for comparison, p in zip(comparisons, adjusted, strict=True)
    ]
