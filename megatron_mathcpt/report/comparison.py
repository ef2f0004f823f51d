"""Compare runs on the same items by two measures, each with its verdict as a sentence.

Accuracy has the exact paired test; bits per byte of gold solutions, which decide more where few answers
are right, and means over seeds, which are not 0 or 1, the paired bootstrap and Wilcoxon's test. Of a set in
two forms it takes one (`read.Run`). Holm's correction is applied within three families of each measure: all
pooled comparisons, all on sets, all on subsets (stage, steps, level, language) of at least `LEAST_ITEMS`.
Verdicts depend on the corrected p-values, and on the signs of the seeds.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

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
_CLAIMS = {
    "better": ("{} answers more than {}", "{} needs fewer bits per byte than {}"),
    "worse": ("{} answers fewer than {}", "{} needs more bits per byte than {}"),
    UNDECIDED: ("{} and {} are not distinguishable", "{} and {} are not distinguishable in bits per byte"),
}


@dataclass(frozen=True)
class _Tested(PairedMeans):
    """The exact test of 0/1 outcomes takes the place of both others; `only_` are counts of items."""

    only_first: int | None = None
    only_second: int | None = None


@dataclass(frozen=True)
class Comparison(_Tested):
    """`second` against `first` by their means over seeds on each item of `task`: shares of right answers.

    Or, `of_bits`, bits per byte: fewer are better. `seeds` are those compared; `by_seed` their differences.
    """

    second: str = ""
    first: str = ""
    task: str = ""
    p_holm: float = 1.0
    wilcoxon_holm: float = 1.0
    tests: int = 1
    seeds: str = ""
    by_seed: tuple[float, ...] = ()
    of_bits: bool = False
    bits: "Comparison | None" = None  # next to accuracy; None if either run was scored without them

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not distinguishable`, at the family-wise level.

        It needs both tests, as the bootstrap's tails are too light for few items; and the same sign with
        every seed, of which no test over items knows.
        """
        same = all(self.difference * other > 0 for other in (self.rank_difference, *self.by_seed))
        found = same and max(self.p_holm, self.wilcoxon_holm) < ALPHA
        return UNDECIDED if not found else "better" if (self.difference > 0) != self.of_bits else "worse"

    @property
    def sentence(self) -> str:
        form, unit = (number, "") if self.of_bits else (points, " points")
        exact, several = self.only_first is not None, self.tests > 1
        means = " against ".join(
            str(round(mean * self.n)) if exact else form(mean) for mean in (self.mean_second, self.mean_first)
        )
        of = f" of {self.n}" if exact else "" if self.of_bits else f" % of {self.n} items"
        numbers = (self.difference, self.low, self.high, *self.by_seed)
        change, low, high, *each = (form(value, sign=True) for value in numbers)
        p = [p_value(value, equals=True) for value in (self.p_holm, self.wilcoxon_holm)]
        tests = f"bootstrap p {p[0]}, Wilcoxon p {p[1]}{', ' * several}"
        if exact:
            corrected = f"; {p_value(self.p_holm)} " if several else ""
            tests = f"exact McNemar p {p_value(self.p_value, equals=True)}{corrected}"
        tests += f"after Holm over {self.tests} tests" if several else ""
        by_seed = f"; by seed {', '.join(each)}" if each else ""
        claim = _CLAIMS[self.verdict][self.of_bits].format(self.second, self.first)
        where = "" if self.task == POOLED else f" on {self.task}"
        figures = f"({change}{unit}, 95% interval {low} to {high}{by_seed}; {tests})"
        return f"{claim}{where}: {means}{of}{self.seeds} {figures}."

    def as_json(self) -> dict[str, JsonValue]:
        """All fields, with verdict and sentence; None for NaN, which JSON lacks."""
        values = vars(self) | {"verdict": self.verdict, "sentence": self.sentence}
        values["bits"] = self.bits and self.bits.as_json()
        return {name: None if str(value) == "nan" else value for name, value in values.items()}


class _Test(NamedTuple):
    about: JsonObject  # names of second, first and task, and which seeds are compared
    items: list[tuple[str, str]]  # (set, id)
    pairs: list[tuple[Run, Run]]  # (first, second) of each seed that both have

    def values(self, of_bits: bool) -> _Values:
        """Of the items that have one in all runs."""
        found = []
        for run, other in (sides for pair in self.pairs for sides in (pair, pair[::-1])):
            sets = {of: run.gold_bits(of, other) if of_bits else run.right(of) for of, _ in self.items}
            found.append([sets[of].get(item) for of, item in self.items])
        there = [row for row in zip(*found, strict=True) if None not in row]
        return np.array(there, np.float64).T.reshape(len(self.pairs), 2, -1)


def compare_runs(pools: Mapping[str, Seeds], pairs: Sequence[Pair]) -> tuple[Comparison, ...]:
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
        large = {name: found for name, found in shared.items() if len(found) >= LEAST_ITEMS}
        most = max(len(seconds), len(firsts))
        seeds = f", mean of {len(both)} seeds" if len(both) > 1 else ", in the one seed" if most > 1 else ""
        seeds += " that both have" if len(both) < most else ""
        about = {"second": pair[0], "first": pair[1], "seeds": seeds}
        for family, tests in zip(families, ({POOLED: [*chain(*items.values())]}, items, large), strict=True):
            family += [_Test(about | {"task": task}, of, both) for task, of in tests.items()]
    return tuple(row for family in families for row in _compare(family))


def _compare(family: Sequence[_Test]) -> Iterator[Comparison]:
    right, bits = ([test.values(of_bits) for test in family] for of_bits in (False, True))
    averaged = [values for values in right if len(values) > 1] + [values for values in bits if values.size]
    pairs = [(first, second) for first, second in (values.mean(axis=0).tolist() for values in averaged)]
    means = iter(compare_means(pairs, len(family)))
    tests = [next(means) if len(values) > 1 else _exact(*values[0]) for values in right]
    of_bits = _correct(family, bits, [next(means) if values.size else None for values in bits], True)
    rows = _correct(family, right, tests, False)
    return (replace(row, bits=other) for row, other in zip(rows, of_bits, strict=True) if row)


def _exact(first: Sequence[float], second: Sequence[float]) -> _Tested:
    """The exact test of outcomes that are 0 or 1."""
    test = compare_paired([value == 1 for value in first], [value == 1 for value in second])
    means = {"mean_first": fmean(first), "mean_second": fmean(second), "rank_difference": test.difference}
    detectable = minimum_detectable_difference(test.n, (test.only_first + test.only_second) / test.n)
    return _Tested(**vars(test) | means, wilcoxon=test.p_value, detectable=detectable)


def _correct(
    family: Sequence[_Test], values: list[_Values], tests: Sequence[PairedMeans | None], of_bits: bool
) -> list[Comparison | None]:
    """The tests with Holm's correction over those that there are."""
    there = [test for test in tests if test]
    p, wilcoxon = (iter(holm([getattr(test, name) for test in there])) for name in ("p_value", "wilcoxon"))
    rows: list[Comparison | None] = []
    for one, found, test in zip(family, values, tests, strict=True):
        if test:
            changes = (found[:, 1] - found[:, 0]).mean(axis=1).tolist() if len(found) > 1 else ()
            more = {"tests": len(there), "of_bits": of_bits, "by_seed": tuple(changes)}
            more |= {"p_holm": next(p), "wilcoxon_holm": next(wilcoxon)}
        rows.append(Comparison(**vars(test) | one.about | more) if test else None)
    return rows


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
    rows = [_cells(row.task, "accuracy", row, row.p_holm) for row in tests]
    of_bits = (row.bits for row in tests if row.bits)
    return settings, rows + [_cells(row.task, "bits per byte", row, row.p_holm) for row in of_bits], said


def differing_settings(*runs: Run) -> list[Cells]:
    """Fields that are not the same in both runs, with their values; of an evaluation alone only its own."""
    before, after = (run.settings() for run in runs)
    fields = [field for field in before | after if before.get(field) != after.get(field)]
    part = "" if all(run.manifest for run in runs) else "evaluation."
    return [
        (field, *(Cell(side.get(field), str(side.get(field, MISSING))) for side in (before, after)))
        for field in fields
        if field.startswith(part)
    ]


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
    tests: dict[tuple[str, str], PairedMeans] = {
        key: _exact(*found) for key, found in values.items() if key not in others
    }
    tests |= zip(others, compare_means([values[key] for key in others], len(values)), strict=True)
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    return [_cells(*key, tests[key], adjusted[key]) for key in values]


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


def _cells(task: str, metric: str, test: PairedMeans, p_holm: float) -> Cells:
    only = (getattr(test, "only_first", None), getattr(test, "only_second", None))
    exact = only[0] is not None
    counts = Cell(only, "{} : {}".format(*only)) if exact else Cell(None, "")
    wilcoxon = Cell(None, "") if exact else figure(test.wilcoxon, ".4g")
    numbers = (test.n, test.mean_first, test.mean_second, test.difference, test.p_value, p_holm)
    *means, p, corrected = map(figure, numbers, ("", ".4f", ".4f", "+.4f", ".4g", ".4g"))
    interval = MISSING if math.isnan(test.low) else f"{test.low:+.4f} to {test.high:+.4f}"
    bounds = Cell((test.low, test.high), interval)
    return task, metric, *means, bounds, p, corrected, wilcoxon, figure(test.detectable, ",.4f"), counts
