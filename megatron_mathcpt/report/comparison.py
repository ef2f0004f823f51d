"""Compare runs by exact paired tests on the same items, each with its verdict as a sentence.

Holm's correction is applied within three families: all pooled comparisons, all on single tasks, all on single
subsets (school stage or difficulty). The verdict depends on the corrected p-value alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.manifest import leaves
from megatron_mathcpt.report.figures import MISSING, p_value, points
from megatron_mathcpt.report.read import Run, load_runs
from megatron_mathcpt.statistics import PairedComparison, compare_paired, holm, minimum_detectable_difference

ALPHA = 0.05  # family-wise error rate
POOLED = "all tasks"
Pair = tuple[str, str]  # runs: second, first
_Test = tuple[str, str, str, list[bool], list[bool]]  # second, first, task, outcomes of both


@dataclass(frozen=True)
class Comparison(PairedComparison):
    """`second` against `first` on the items of `task`; `difference`, `low` and `high` are shares."""

    second: str
    first: str
    task: str
    correct_second: int
    correct_first: int
    detectable: float  # smallest true difference that this test finds with 80 % power
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
        """The verdict with its figures."""
        where = "" if self.task == POOLED else f" on {self.task}"
        counts = f"{self.correct_second} against {self.correct_first} of {self.n}"
        corrected = f"; {p_value(self.p_holm)} after Holm over {self.tests} tests" if self.tests > 1 else ""
        figures = (
            f"{points(self.difference, sign=True)} points, 95% interval {points(self.low, sign=True)} to "
            f"{points(self.high, sign=True)}; exact McNemar p {p_value(self.p_value, equals=True)}{corrected}"
        )
        claims = {
            "better": "{} answers more than {}",
            "worse": "{} answers fewer than {}",
            "not distinguishable": "{} and {} are not distinguishable",
        }
        return f"{claims[self.verdict].format(self.second, self.first)}{where}: {counts} ({figures})."

    def as_json(self) -> dict[str, JsonValue]:
        """All fields, with verdict and sentence."""
        return asdict(self) | {"verdict": self.verdict, "sentence": self.sentence}


def compare_runs(runs: Sequence[Run], pairs: Sequence[Pair]) -> tuple[Comparison, ...]:
    """Compare each pair (second, first) over all tasks in common, then by task, then by subset.

    Raises `EvaluationError` if a run of a pair is unknown, was not scored, or shares no task with the other.
    """
    by_name = {run.name: run for run in runs}
    families: tuple[list[_Test], ...] = [], [], []
    for pair in pairs:
        if unknown := [name for name in pair if name not in by_name]:
            raise EvaluationError(f"comparison names run '{unknown[0]}'; there are: {', '.join(by_name)}")
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
        # Subsets span all tasks of a run: in runs scored on other tasks they contain other, unpaired items.
        if second.scores.keys() == first.scores.keys():
            for name, found in second.subsets.items():
                families[2].append((*pair, name, [*found.values()], [*first.subsets[name].values()]))
    return tuple(row for family in families for row in _compare(family))


def _compare(family: Sequence[_Test]) -> Iterator[Comparison]:
    tests = [compare_paired(before, after) for *_, after, before in family]
    adjusted = holm([test.p_value for test in tests])
    for (second, first, task, after, before), test, p in zip(family, tests, adjusted, strict=True):
        names = {"second": second, "first": first, "task": task, "tests": len(family)}
        correct = {"correct_second": sum(after), "correct_first": sum(before), "p_holm": p}
        discordant = (test.only_first + test.only_second) / test.n
        power = {"detectable": minimum_detectable_difference(test.n, discordant)}
        yield Comparison(**vars(test) | names | correct | power)


def compare_two(root: Path, second: str, first: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Settings that differ, as (field, value of second, value of first); sentences of the paired tests."""
    runs = load_runs(root, [first, second])
    configs = (leaves(run.manifest.config) if run.manifest else {} for run in runs)
    # An empty section sets nothing: a config without it is not different.
    before, after = ({field: value for field, value in config.items() if value != {}} for config in configs)
    fields = [field for field in before | after if before.get(field) != after.get(field)]
    settings = [(field, str(after.get(field, MISSING)), str(before.get(field, MISSING))) for field in fields]
    scored = all(run.scores for run in runs)
    return settings, [row.sentence for row in compare_runs(runs, [(second, first)])] if scored else []
