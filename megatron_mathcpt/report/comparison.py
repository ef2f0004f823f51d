"""Compare runs on the same items by two measures, each with its verdict as a sentence.

Accuracy has the exact paired test; bits per byte of gold solutions, which decide more where few answers
are right, the paired bootstrap and Wilcoxon's test. Of a set in two forms it takes one (`read.Run`).
Holm's correction is applied within three families of each measure: all pooled comparisons, all on sets, all
on subsets (stage, steps, level, language). Verdicts depend on the corrected p-values alone.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean

from pydantic import JsonValue

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.evaluation_folder import KIND
from megatron_mathcpt.formats.manifest import leaves, load_manifest
from megatron_mathcpt.formats.sample_log import SampleLog, find_logs, read_log
from megatron_mathcpt.log import Cell, figure
from megatron_mathcpt.report.figures import MISSING, number, p_value, points
from megatron_mathcpt.report.read import SUBSETS, Run, load_runs
from megatron_mathcpt.statistics import (
    PairedComparison,
    PairedMeans,
    compare_means,
    compare_paired,
    holm,
    minimum_detectable_difference,
)

ALPHA = 0.05  # family-wise error rate
POOLED = "all tasks"
UNDECIDED = "not distinguishable"
HEADINGS: tuple[str, ...] = ("task", "metric", "items", "A", "B", "B - A", "95% interval", "p", "Holm p")
HEADINGS += ("Wilcoxon p", "detectable", "only A : only B")
Cells = tuple[str, ...]
Pair = tuple[str, str]  # runs: second, first
Note = tuple[str, str]  # a task, and what is to be said about it
_Test = tuple[Run, Run, str, list[tuple[str, str]]]  # second, first, task, items as (set, id)


@dataclass(frozen=True)
class BitsComparison(PairedMeans):
    """`second` against `first` in bits per byte of the gold solutions: fewer are better."""

    second: str
    first: str
    task: str
    p_holm: float
    wilcoxon_holm: float
    tests: int

    @property
    def verdict(self) -> str:
        """As of `Comparison`; it needs both tests, as the bootstrap's tails are too light for few items."""
        both = max(self.p_holm, self.wilcoxon_holm) < ALPHA and self.difference * self.rank_difference > 0
        return UNDECIDED if not both else "better" if self.difference < 0 else "worse"

    @property
    def sentence(self) -> str:
        tests = zip(("bootstrap", "Wilcoxon"), (self.p_holm, self.wilcoxon_holm), strict=True)
        p = ", ".join(f"{name} p {p_value(value, equals=True)}" for name, value in tests)
        corrected = f", after Holm over {self.tests} tests" if self.tests > 1 else ""
        change, low, high = (number(x, sign=True) for x in (self.difference, self.low, self.high))
        figures = f"{change}, 95% interval {low} to {high}; {p}{corrected}"
        counts = f"{number(self.mean_second)} against {number(self.mean_first)} ({figures})"
        fewer, more = (f"{{}} needs {how} bits per byte than {{}}" for how in ("fewer", "more"))
        return _sentence(self, (fewer, more, "{} and {} are not distinguishable in bits per byte"), counts)


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
    bits: BitsComparison | None = None  # None if either run was scored without them

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not distinguishable`, at the family-wise level."""
        if self.p_holm >= ALPHA or self.only_first == self.only_second:
            return UNDECIDED
        return "better" if self.only_second > self.only_first else "worse"

    @property
    def sentence(self) -> str:
        counts = f"{self.correct_second} against {self.correct_first} of {self.n}"
        corrected = f"; {p_value(self.p_holm)} after Holm over {self.tests} tests" if self.tests > 1 else ""
        figures = (
            f"{points(self.difference, sign=True)} points, 95% interval {points(self.low, sign=True)} to "
            f"{points(self.high, sign=True)}; exact McNemar p {p_value(self.p_value, equals=True)}{corrected}"
        )
        claims = "{} answers more than {}", "{} answers fewer than {}", "{} and {} are not distinguishable"
        return _sentence(self, claims, f"{counts} ({figures})")

    def as_json(self) -> dict[str, JsonValue]:
        """All fields, with the verdict and sentence of each measure; None for NaN, which JSON lacks."""
        return _as_json(self) | {"bits": _as_json(self.bits) if self.bits else None}


def _sentence(row: Comparison | BitsComparison, claims: tuple[str, str, str], figures: str) -> str:
    """`claims` are of second and first: better, worse, undecided."""
    claim = dict(zip(("better", "worse", UNDECIDED), claims, strict=True))[row.verdict]
    where = "" if row.task == POOLED else f" on {row.task}"
    return f"{claim.format(row.second, row.first)}{where}: {figures}."


def _as_json(row: Comparison | BitsComparison) -> dict[str, JsonValue]:
    values = asdict(row)
    missing = {name: None for name, value in values.items() if isinstance(value, float) and math.isnan(value)}
    return values | missing | {"verdict": row.verdict, "sentence": row.sentence}


def compare_runs(runs: Sequence[Run], pairs: Sequence[Pair]) -> tuple[Comparison, ...]:
    """Compare each pair (second, first) over all sets in common, then by set, then by subset.

    Raises `EvaluationError` if a run of a pair is unknown, was not scored, or shares no task with the other.
    """
    by_name = {run.name: run for run in runs}
    families: tuple[list[_Test], ...] = [], [], []
    for pair in pairs:
        if unknown := [name for name in pair if name not in by_name]:
            raise EvaluationError(f"comparison names run '{unknown[0]}'; there are: {', '.join(by_name)}")
        second, first = (by_name[name] for name in pair)
        items = {of: [(of, item) for item in second.right(of)] for of in second.higher if of in first.higher}
        if not items:
            raise EvaluationError(
                f"{second.scored}: no task in common with {first.name}; evaluate both runs on the same tasks"
            )
        families[0].append((second, first, POOLED, [item for found in items.values() for item in found]))
        families[1].extend((second, first, of, found) for of, found in items.items())
        for name in SUBSETS:
            subset = second.subsets.get(name) or first.subsets.get(name) or ()
            if found := [item for item in subset if item[0] in items]:
                families[2].append((second, first, name, found))
    return tuple(row for family in families for row in _compare(family))


def _compare(family: Sequence[_Test]) -> Iterator[Comparison]:
    tests, pairs = [], {}
    for index, (second, first, _, items) in enumerate(family):
        after, before = ([run.right(of)[item] for of, item in items] for run in (second, first))
        tests.append((compare_paired(before, after), sum(after), sum(before)))
        old, new = (
            {(of, item): bits for of in run.higher for item, bits in run.gold_bits(of, other).items()}
            for run, other in ((first, second), (second, first))
        )
        if both := [item for item in items if item in old and item in new]:
            pairs[index] = [old[item] for item in both], [new[item] for item in both]
    means = compare_means([*pairs.values()])
    holms = (holm([getattr(found, test) for found in means]) for test in ("p_value", "wilcoxon"))
    of_bits = dict(zip(pairs, zip(means, *holms, strict=True), strict=True))
    adjusted = holm([test.p_value for test, *_ in tests])
    for index, (second, first, task, _) in enumerate(family):
        test, correct_second, correct_first = tests[index]
        names = {"second": second.name, "first": first.name, "task": task}
        row = Comparison(
            **vars(test) | names,
            correct_second=correct_second,
            correct_first=correct_first,
            detectable=minimum_detectable_difference(test.n, (test.only_first + test.only_second) / test.n),
            p_holm=adjusted[index],
            tests=len(family),
        )
        if index in of_bits:
            mean, p, wilcoxon = of_bits[index]
            corrected = {"p_holm": p, "wilcoxon_holm": wilcoxon, "tests": len(pairs)}
            row = replace(row, bits=BitsComparison(**vars(mean) | names | corrected))
        yield row


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
    configs = (
        (leaves(run.manifest.config) if run.manifest and not alone else {})  # else all would differ
        | (leaves(load_manifest(run.scored, KIND).config, "evaluation.") if run.scores else {})
        for run in runs
    )
    # An empty section sets nothing: a config without it is not different.
    before, after = ({field: value for field, value in config.items() if value != {}} for config in configs)
    fields = [field for field in before | after if before.get(field) != after.get(field)]
    settings: list[Cells] = [
        (field, *(Cell(side.get(field), str(side.get(field, MISSING))) for side in (before, after)))
        for field in fields
    ]
    tests = compare_runs(runs, [(second, first)]) if all(run.scores for run in runs) else ()
    said = [f"{side}: an evaluation alone; settings of training are not compared." for side in alone]
    said += [] if settings or alone else ["Same settings."]
    said += [found.sentence for row in tests[:1] for found in (row, row.bits) if found]
    forms = [{of: form for of, form in run.higher.items() if of in run.scores and form != of} for run in runs]
    said += [f"Few-shot form of {', '.join(few)} in {n}." for n, few in zip("AB", forms, strict=True) if few]
    return settings, rows_of(tests), said


def rows_of(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A row of `HEADINGS` for each test, with `first` as A."""
    rows = []
    for row in comparisons:
        ends = (row.correct_first / row.n, row.correct_second / row.n)
        rows.append(_cells(row.task, "accuracy", row, ends, row.p_holm))
    for bits in (row.bits for row in comparisons if row.bits):
        ends = (bits.mean_first, bits.mean_second)
        rows.append(_cells(bits.task, "bits per byte", bits, ends, bits.p_holm))
    return rows


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
