"""Compare runs on the same items by two measures, each with its verdict as a sentence.

Accuracy has the exact paired test; bits per byte of gold solutions, which decide more where few answers
are right, the paired bootstrap and Wilcoxon's test. Of a set in two forms it takes one (`read.Run`).
Runs of several seeds are compared by the means over their seeds on each item, no longer 0 or 1, so that
accuracy too has the bootstrap and Wilcoxon's test.
Holm's correction is applied within three families of each measure: all pooled comparisons, all on sets, all
on subsets (stage, steps, level, language) of at least `LEAST_ITEMS`. Verdicts depend on the corrected
p-values alone.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.sample_log import SampleLog, find_logs, read_log
from megatron_mathcpt.log import Cell, figure
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.report.figures import MISSING, number, p_value, points
from megatron_mathcpt.report.read import SUBSETS, Run, Seeds, load_runs
from megatron_mathcpt.statistics import (
    PairedComparison,
    PairedMeans,
    compare_means,
    compare_paired,
    holm,
    minimum_detectable_difference,
)

ALPHA = 0.05  # family-wise error rate
LEAST_ITEMS = 10  # of a subset that is tested
POOLED = "all tasks"
UNDECIDED = "not distinguishable"
HEADINGS: tuple[str, ...] = ("task", "metric", "items", "A", "B", "B - A", "95% interval", "p", "Holm p")
HEADINGS += ("Wilcoxon p", "detectable", "only A : only B")
Cells = tuple[str, ...]
Pair = tuple[str, str]  # runs: second, first
Note = tuple[str, str]  # a task, and what is to be said about it
_Values = NDArray[np.float64]  # (seeds, 2, items): of the first run and of the second
_CLAIMS = "{} answers more than {}", "{} answers fewer than {}", "{} and {} are not distinguishable"


@dataclass(frozen=True)
class _MeansComparison(PairedMeans):
    """`second` against `first` by their means over seeds on each item.

    `seeds` says which seeds these are, if a run has several; `by_seed` are the seeds' own differences.
    """

    second: str
    first: str
    task: str
    p_holm: float
    wilcoxon_holm: float
    tests: int
    seeds: str = ""
    by_seed: tuple[float, ...] = ()
    sign: ClassVar[int] = 1  # of a difference for the better

    @property
    def ends(self) -> tuple[float, float]:
        return self.mean_first, self.mean_second

    @property
    def verdict(self) -> str:
        """As of `Comparison`; it needs both tests, as the bootstrap's tails are too light for few items.

        No test over items accounts for seeds: the difference must have the same sign with each of them.
        """
        same = all(self.difference * other > 0 for other in (self.rank_difference, *self.by_seed))
        found = same and max(self.p_holm, self.wilcoxon_holm) < ALPHA
        return UNDECIDED if not found else "better" if self.difference * self.sign > 0 else "worse"

    def figures(self, form: Callable[..., str], unit: str = "") -> str:
        change, low, high, *each = (
            form(x, sign=True) for x in (self.difference, self.low, self.high, *self.by_seed)
        )
        tests = zip(("bootstrap", "Wilcoxon"), (self.p_holm, self.wilcoxon_holm), strict=True)
        p = ", ".join(f"{name} p {p_value(value, equals=True)}" for name, value in tests)
        corrected = f", after Holm over {self.tests} tests" if self.tests > 1 else ""
        seeds = f"; by seed {', '.join(each)}" if each else ""
        return f"{self.seeds} ({change}{unit}, 95% interval {low} to {high}{seeds}; {p}{corrected})"


@dataclass(frozen=True)
class BitsComparison(_MeansComparison):
    """Bits per byte of the gold solutions: fewer are better."""

    sign: ClassVar[int] = -1

    @property
    def sentence(self) -> str:
        fewer, more = (f"{{}} needs {how} bits per byte than {{}}" for how in ("fewer", "more"))
        claims = (fewer, more, "{} and {} are not distinguishable in bits per byte")
        means = f"{number(self.mean_second)} against {number(self.mean_first)}"
        return _sentence(self, claims, means + self.figures(number))


@dataclass(frozen=True)
class SeedsComparison(_MeansComparison):
    """Accuracy of runs of several seeds, by the share of the seeds that answer an item."""

    bits: BitsComparison | None = None

    @property
    def sentence(self) -> str:
        means = f"{points(self.mean_second)} against {points(self.mean_first)} % of {self.n} items"
        return _sentence(self, _CLAIMS, means + self.figures(points, " points"))


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
    seeds: str = ""  # which are compared, if either run has several
    bits: BitsComparison | None = None  # None if either run was scored without them

    @property
    def ends(self) -> tuple[float, float]:
        return self.correct_first / self.n, self.correct_second / self.n

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not distinguishable`, at the family-wise level."""
        if self.p_holm >= ALPHA or self.only_first == self.only_second:
            return UNDECIDED
        return "better" if self.only_second > self.only_first else "worse"

    @property
    def sentence(self) -> str:
        counts = f"{self.correct_second} against {self.correct_first} of {self.n}{self.seeds}"
        corrected = f"; {p_value(self.p_holm)} after Holm over {self.tests} tests" if self.tests > 1 else ""
        figures = (
            f"{points(self.difference, sign=True)} points, 95% interval {points(self.low, sign=True)} to "
            f"{points(self.high, sign=True)}; exact McNemar p {p_value(self.p_value, equals=True)}{corrected}"
        )
        return _sentence(self, _CLAIMS, f"{counts} ({figures})")


Found = Comparison | SeedsComparison  # accuracy, with the bits per byte


class _Test(NamedTuple):
    about: dict[str, str]  # names of second, first and task, and which seeds are compared
    items: list[tuple[str, str]]  # (set, id)
    pairs: list[tuple[Run, Run]]  # (first, second) of each seed that both have

    def right(self) -> _Values:
        found = [[[run.right(of)[item] for of, item in self.items] for run in pair] for pair in self.pairs]
        return np.array(found, np.float64)

    def bits(self) -> _Values:
        """Of the items that have them in all runs."""
        found = [
            {(of, item): bits for of in run.higher for item, bits in run.gold_bits(of, other).items()}
            for pair in self.pairs
            for run, other in (pair, pair[::-1])
        ]
        both = [item for item in self.items if all(item in bits for bits in found)]
        return np.array([[bits[item] for item in both] for bits in found]).reshape(len(self.pairs), 2, -1)


def comparison_as_json(row: Found | BitsComparison) -> dict[str, JsonValue]:
    """All fields, with the verdict and sentence of each measure; None for NaN, which JSON lacks."""
    values = asdict(row)
    missing = {name: None for name, value in values.items() if isinstance(value, float) and math.isnan(value)}
    bits = {} if isinstance(row, BitsComparison) else {"bits": row.bits and comparison_as_json(row.bits)}
    return values | missing | bits | {"verdict": row.verdict, "sentence": row.sentence}


def _sentence(row: Found | BitsComparison, claims: tuple[str, str, str], figures: str) -> str:
    """`claims` are of second and first: better, worse, undecided."""
    claim = dict(zip(("better", "worse", UNDECIDED), claims, strict=True))[row.verdict]
    where = "" if row.task == POOLED else f" on {row.task}"
    return f"{claim.format(row.second, row.first)}{where}: {figures}."


def compare_runs(pools: Mapping[str, Seeds], pairs: Sequence[Pair]) -> tuple[Found, ...]:
    """Compare each pair (second, first) over all sets in common, then by set, then by subset.

    Raises `EvaluationError` if a run of a pair is unknown, was not scored, or shares no task with the other.
    """
    families: tuple[list[_Test], ...] = [], [], []
    for pair in pairs:
        if unknown := [name for name in pair if name not in pools]:
            raise EvaluationError(f"comparison names run '{unknown[0]}'; there are: {', '.join(pools)}")
        seconds, firsts = (pools[name] for name in pair)
        both = [(firsts[seed], seconds[seed]) for seed in seconds if seed in firsts]
        first, second = both[0]
        items = {of: [(of, item) for item in second.right(of)] for of in second.higher if of in first.higher}
        if not items:
            raise EvaluationError(
                f"{second.scored}: no task in common with {first.name}; evaluate both runs on the same tasks"
            )
        subsets = {name: second.subsets.get(name) or first.subsets.get(name) or () for name in SUBSETS}
        shared = {name: [item for item in found if item[0] in items] for name, found in subsets.items()}
        shared = {name: found for name, found in shared.items() if len(found) >= LEAST_ITEMS}
        tests = {POOLED: [item for found in items.values() for item in found]}, items, shared
        about = {"second": pair[0], "first": pair[1]}
        about["seeds"] = _describe_seeds(len(both), max(len(seconds), len(firsts)))
        for family, found in zip(families, tests, strict=True):
            family += [_Test(about | {"task": task}, of, both) for task, of in found.items()]
    return tuple(row for family in families for row in _compare(family))


def _describe_seeds(both: int, most: int) -> str:
    if most == 1:
        return ""
    which = f"mean of {both} seeds" if both > 1 else "in the one seed"
    return f", {which}" + (" that both have" if both < most else "")


def _compare(family: Sequence[_Test]) -> Iterator[Found]:
    right = [test.right() for test in family]
    bits = {at: found for at, test in enumerate(family) if (found := test.bits()).size}
    pooled = {at: found for at, found in enumerate(right) if len(found) > 1}
    averaged = [values.mean(axis=0).tolist() for values in (*pooled.values(), *bits.values())]
    means = compare_means([(first, second) for first, second in averaged], len(family))
    of_seeds = means[: len(pooled)]
    exact = {
        at: compare_paired(*(found[0] > 0).tolist()) for at, found in enumerate(right) if len(found) == 1
    }
    # Of runs with one seed, the exact test takes the place of both others.
    single = [test.p_value for test in exact.values()]
    of_bits = {
        at: BitsComparison(**found) for at, found in _with_means(family, bits, means[len(pooled) :], [])
    }
    rows: dict[int, Found] = {
        at: SeedsComparison(**found, bits=of_bits.get(at))
        for at, found in _with_means(family, pooled, of_seeds, single)
    }
    adjusted = holm([*single, *(found.p_value for found in of_seeds)])
    for p_holm, (at, test) in zip(adjusted, exact.items(), strict=False):
        before, after = right[at][0].sum(axis=1).astype(int).tolist()
        counts = {"correct_second": after, "correct_first": before, "p_holm": p_holm, "tests": len(family)}
        discordant = (test.only_first + test.only_second) / test.n
        counts["detectable"] = minimum_detectable_difference(test.n, discordant)
        rows[at] = Comparison(**vars(test) | family[at].about | counts, bits=of_bits.get(at))
    return (rows[at] for at in range(len(family)))


def _with_means(
    family: Sequence[_Test], values: dict[int, _Values], means: list[PairedMeans], others: list[float]
) -> Iterator[tuple[int, JsonObject]]:
    """Fields of the tests that have values; `others` are p-values that share their Holm's correction."""
    tests = [[getattr(found, name) for found in means] for name in ("p_value", "wilcoxon")]
    holms = (holm([*others, *found])[len(others) :] for found in tests)
    for (at, found), test, p_holm, wilcoxon in zip(values.items(), means, *holms, strict=True):
        corrected = {"p_holm": p_holm, "wilcoxon_holm": wilcoxon, "tests": len(means) + len(others)}
        changes = (found[:, 1] - found[:, 0]).mean(axis=1).tolist()
        by_seed = tuple(changes) if len(changes) > 1 else ()
        yield at, vars(test) | family[at].about | corrected | {"by_seed": by_seed}


def compare_outputs(first: Path, second: Path) -> tuple[list[Cells], list[Cells], list[str]]:
    """Settings that differ, as (field, value of first, of second); rows of `HEADINGS`; what is to be said.

    Both are folders of ours, or both lm-eval's output. Raises a `MathCptError` for what cannot be read, or
    has other items.
    """
    (a, _), (b, _) = outputs = [find_logs(path) for path in (first, second)]
    if not (a or b):
        return _compare_two(first, second)
    if not (a and b):
        raise EvaluationError(
            f"{second if a else first}: no logs of lm-eval, as the other has; give two alike"
        )
    if first.is_file() and second.is_file() and len(a) == len(b) == 1:  # whatever the names of the tasks
        b = dict(zip(a, b.values(), strict=True))
    notes = [(task, f"only in {'AB'[task in b]}; left out") for task in sorted({*a} ^ {*b})]
    rows = compare_logs({task: (read_log(a[task]), read_log(b[task])) for task in a if task in b}, notes)
    said = _by_text(notes)
    for name, (_, older) in zip("AB", outputs, strict=True):
        if older:
            said.append(f"{older} older logs in {name} left out; to choose them, give their results file")
    return [], rows, [*said, f"Holm p: over {len(rows)} tests."] if len(rows) > 1 else said


def _by_text(notes: Sequence[Note]) -> list[str]:
    tasks: dict[str, list[str]] = {}
    for task, text in notes:
        tasks.setdefault(text, []).append(task)
    return [f"{', '.join(found)}: {text}" for text, found in tasks.items()]


def _compare_two(*folders: Path) -> tuple[list[Cells], list[Cells], list[str]]:
    root = Path(os.path.commonpath([folder.parent for folder in folders]))
    first, second = (folder.relative_to(root).as_posix() for folder in folders)
    runs = load_runs(root, [first, second])
    alone = [side for side, run in zip("AB", runs, strict=True) if not run.manifest]
    settings = differing_settings(*runs)
    pools = {run.name: {1: run} for run in runs}
    tests = compare_runs(pools, [(second, first)]) if all(run.scores for run in runs) else ()
    said = [f"{side}: an evaluation alone; settings of training are not compared." for side in alone]
    said += [] if settings or alone else ["Same settings."]
    said += [found.sentence for row in tests[:1] for found in (row, row.bits) if found]
    forms = [{of: form for of, form in run.higher.items() if of in run.scores and form != of} for run in runs]
    said += [f"Few-shot form of {', '.join(few)} in {n}." for n, few in zip("AB", forms, strict=True) if few]
    return settings, rows_of(tests), said


def differing_settings(*runs: Run) -> list[Cells]:
    """Fields that are not the same in both runs, with their values; of an evaluation alone only its own."""
    before, after = (run.settings() for run in runs)
    fields = [field for field in before | after if before.get(field) != after.get(field)]
    if not all(run.manifest for run in runs):
        fields = [field for field in fields if field.startswith("evaluation.")]
    return [
        (field, *(Cell(side.get(field), str(side.get(field, MISSING))) for side in (before, after)))
        for field in fields
    ]


def rows_of(comparisons: Sequence[Found]) -> list[tuple[str, ...]]:
    """A row of `HEADINGS` for each test, with `first` as A."""
    rows = [_cells(row.task, "accuracy", row, row.ends, row.p_holm) for row in comparisons]
    of_bits = (row.bits for row in comparisons if row.bits)
    return rows + [_cells(row.task, "bits per byte", row, row.ends, row.p_holm) for row in of_bits]


def compare_logs(logs: Mapping[str, tuple[SampleLog, SampleLog]], notes: list[Note]) -> list[Cells]:
    """A row of `HEADINGS` for each task, filter and metric of two sample logs; `notes` gets what is left out.

    Metrics whose values are all 0 or 1 have the exact McNemar test, others the paired bootstrap, with
    Wilcoxon's next to it; Holm's correction is over all. Raises `EvaluationError` for logs of other items.
    """
    values: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for task, (first, second) in logs.items():
        items = _common_items(task, first, second, notes)
        for key in first.metrics | second.metrics:
            a, b = (log.metrics.get(key, {}) for log in (first, second))
            found = [a.get(item, math.nan) for item in items], [b.get(item, math.nan) for item in items]
            metric = key[1] if key[0] == "none" else f"{key[1]}, {key[0]}"
            bad = [
                item for item, *both in zip(items, *found, strict=True) if not all(map(math.isfinite, both))
            ]
            if not bad:
                values[task, metric] = found
                continue
            why = f"is no number for {len(bad)} of {len(items)} items, such as {bad[0]!r}"
            notes.append((task, f"{metric} {why if a and b else 'only in ' + 'AB'[not a]}; left out"))
    if not values:
        raise EvaluationError(f"no metric to compare: {'; '.join(_by_text(notes))}")
    others = [key for key, found in values.items() if not {*chain(*found)} <= {0.0, 1.0}]
    tests: dict[tuple[str, str], PairedComparison | PairedMeans] = {
        key: compare_paired([x == 1 for x in a], [x == 1 for x in b])
        for key, (a, b) in values.items()
        if key not in others
    }
    tests |= zip(others, compare_means([values[key] for key in others]), strict=True)
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    ends = {key: (fmean(a), fmean(b)) for key, (a, b) in values.items()}
    return [_cells(*key, tests[key], ends[key], adjusted[key]) for key in values]


def _common_items(task: str, first: SampleLog, second: SampleLog, notes: list[Note]) -> list[int | str]:
    """Items of both logs, by number and hash; notes those that one lacks, and other prompts."""
    both = [item for item in first.items if item in second.items]
    other = [item for item in both if first.items[item].identity != second.items[item].identity]
    if other or not both:
        what = f"item {other[0]!r} is another than in" if other else "has no item of"
        raise EvaluationError(f"{second.path}: {what} {first.path}; score both on the same data")
    for name, log in ("A", first), ("B", second):
        if left := len(log.items) - len(both):
            notes.append((task, f"{left} items only in {name}; left out"))
    prompts = [(first.items[item].prompt, second.items[item].prompt) for item in both]
    if others := sum(a != b for a, b in prompts if a and b):
        notes.append((task, f"the prompts of {others} of {len(both)} items differ (shots, chat template)"))
    return both


def _cells(
    task: str, metric: str, test: PairedComparison | PairedMeans, ends: tuple[float, float], p_holm: float
) -> Cells:
    wilcoxon = counts = Cell(None, "")
    if isinstance(test, PairedMeans):
        wilcoxon, detectable = figure(test.wilcoxon, ".4g"), test.detectable
    else:
        only = (test.only_first, test.only_second)
        counts = Cell(only, "{} : {}".format(*only))
        detectable = minimum_detectable_difference(test.n, sum(only) / test.n)
    numbers = (test.n, *ends, test.difference, test.p_value, p_holm)
    *means, p, corrected = map(figure, numbers, ("", ".4f", ".4f", "+.4f", ".4g", ".4g"))
    interval = MISSING if math.isnan(test.low) else f"{test.low:+.4f} to {test.high:+.4f}"
    bounds = Cell((test.low, test.high), interval)
    return task, metric, *means, bounds, p, corrected, wilcoxon, figure(detectable, ",.4f"), counts
