"""Which run answers more: paired exact tests on the same items, and one plain sentence for each.

Three families of tests are corrected by Holm, each in itself: all pooled comparisons, all on one task, all on
one subset (school stage or difficulty). The words follow from the corrected p-value alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.report.figures import MISSING, p_value, points
from megatron_mathcpt.report.read import Run, load_runs
from megatron_mathcpt.statistics import PairedComparison, compare_paired, holm, minimum_detectable_difference

ALPHA = 0.05  # family-wise
POOLED = "all tasks"
_Pair = tuple[str, str, str, list[bool], list[bool]]  # second, first, task, their outcomes item by item


@dataclass(frozen=True)
class Comparison(PairedComparison):
    """`second` against `first` on the items of `task`; difference (second - first) and interval are shares.

    `detectable` is the smallest true difference that this test finds with 80 % power, given how often the two
    differ.
    """

    second: str
    first: str
    task: str
    correct_second: int
    correct_first: int
    detectable: float
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
            "better": "{} answers more than {}",
            "worse": "{} answers fewer than {}",
            "not distinguishable": "{} and {} are not distinguishable",
        }
        return f"{words[self.verdict].format(self.second, self.first)}{where}: {counts} ({figures})."

    def as_json(self) -> dict[str, Any]:
        """All of it, with its words."""
        return asdict(self) | {"verdict": self.verdict, "sentence": self.sentence}


def compare_runs(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> tuple[Comparison, ...]:
    """Every pair (second, first) over all tasks both were scored on; then on each task; then on each subset.

    Raises `EvaluationError` if a run of a pair is unknown, was not scored, or shares no task with the other.
    """
    by_name = {run.name: run for run in runs}
    families: tuple[list[_Pair], ...] = [], [], []
    for pair in pairs:
        for name in pair:
            if name not in by_name:
                raise EvaluationError(f"comparison names run '{name}'; there are: {', '.join(by_name)}")
        second, first = (by_name[name] for name in pair)
        tasks = [task for task in second.scores if task in first.scores]
        if not tasks:
            raise EvaluationError(
                f"{second.folder / 'evaluation'}: no task in common with {first.name}; "
                "evaluate both runs on the same tasks"
            )
        sides = [[(task, [*run.outcomes[task].values()]) for task in tasks] for run in (second, first)]
        after, before = ([right for _, outcomes in side for right in outcomes] for side in sides)
        families[0].append((*pair, POOLED, after, before))
        families[1].extend((*pair, task, a, b) for (task, a), (_, b) in zip(*sides, strict=True))
        if second.scores.keys() == first.scores.keys():
            for name, found in second.subsets.items():
                families[2].append((*pair, name, [*found.values()], [*first.subsets[name].values()]))
    return tuple(row for family in families for row in _compare(family))


def _compare(family: Sequence[_Pair]) -> Iterator[Comparison]:
    tests = [compare_paired(before, after) for *_, after, before in family]
    adjusted = holm([test.p_value for test in tests])
    for (second, first, task, after, before), test, p in zip(family, tests, adjusted, strict=True):
        found: dict[str, Any] = {"correct_second": sum(after), "correct_first": sum(before), "p_holm": p}
        discordant = (test.only_first + test.only_second) / test.n
        found["detectable"] = minimum_detectable_difference(test.n, discordant)
        found |= {"second": second, "first": first, "task": task, "tests": len(family)}
        yield Comparison(**vars(test), **found)


def compare_two(root: Path, second: str, first: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Settings that differ, as (field, value of second, value of first), and the paired tests in words."""
    runs = load_runs(root, [first, second])
    before, after = (_by_path(run.manifest.config) if run.manifest else {} for run in runs)
    fields = [field for field in before | after if before.get(field) != after.get(field)]
    settings = [(field, str(after.get(field, MISSING)), str(before.get(field, MISSING))) for field in fields]
    scored = all(run.scores for run in runs)
    return settings, [row.sentence for row in compare_runs(runs, [(second, first)])] if scored else []


def _by_path(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full path."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _by_path(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
