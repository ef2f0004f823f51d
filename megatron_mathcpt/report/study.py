"""Compare our runs with the figures that arXiv 2501.14002 published, and judge whether its results reproduce.

published.yaml has the published figures. Scores are compared only on the study's public benchmark sets (GSM8K
and MATH); a result is judged only by the Holm-corrected paired tests between our own runs, of either measure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.report import figures
from megatron_mathcpt.report.comparison import POOLED, UNDECIDED, Comparison, Pair
from megatron_mathcpt.report.read import Run

Runs = Mapping[str, Any]  # the runs of report.json, by name
Where = dict[str, tuple[str, ...]]  # by run, the tasks or subsets of a claim
_BY_WEIGHT = ("contradicted", "reproduced", UNDECIDED)


class PublishedSet(Section):
    """One benchmark set of the study: our task on the same items, if there is one, and its size."""

    name: str
    task: str | None
    items: int
    mark: str


class PublishedRow(Section):
    """One model: accuracy in percent on each set, and their mean."""

    run: str
    name: str
    scores: tuple[float, ...] | None = None
    average: float
    mark: str


class PublishedTable(Section):
    title: str
    note: str
    rows: tuple[PublishedRow, ...]


class PublishedSynthesis(Section):
    """The yield of one synthesis method."""

    method: str
    records_per_seed: float
    tokens_per_record: float
    mark: str


class StudyResult(Section):
    """One result of the study: the (better, worse) pairs it claims; `matched` ones differ in one factor."""

    text: str
    published: str
    small: str  # why runs of a small scale may disagree
    pairs: tuple[Pair, ...]
    matched: tuple[Pair, ...] = ()
    where: Where = Field(default_factory=dict)


class Published(Section):
    sets: tuple[PublishedSet, ...]
    tables: tuple[PublishedTable, ...]
    synthesis: tuple[PublishedSynthesis, ...]
    results: tuple[StudyResult, ...]


def load_published() -> Published:
    return load_config(Path(__file__).with_name("published.yaml"), Published)


def study_pairs(published: Published, runs: Sequence[Run]) -> list[Pair]:
    """Pairs of the study's results whose runs are in this report and scored."""
    scored = {run.name for run in runs if run.scores}
    pairs = [pair for result in published.results for pair in (*result.pairs, *result.matched)]
    return [pair for pair in dict.fromkeys(pairs) if set(pair) <= scored]


def build_study(published: Published, runs: Runs, comparisons: Sequence[Comparison]) -> dict[str, JsonValue]:
    """Tables that have one of our runs, and the verdict on each result."""

    def ours(run: str) -> list[JsonValue]:
        # Not `whole` if only part of the set was scored: the page shows such a score in brackets.
        scores = runs[run]["sets"] if run in runs else {}
        shown = ("accuracy", "low", "high", "n")
        return [
            {name: score[name] for name in shown} | {"whole": score["n"] == found.items}
            if (score := scores.get(found.task))
            else None
            for found in published.sets
        ]

    tables = [table for table in published.tables if any(row.run in runs for row in table.rows)]
    scored = {task for run in runs.values() for task in run["sets"]}
    return {
        "sets": [found.model_dump() | {"ours": found.task in scored} for found in published.sets],
        "tables": [
            table.model_dump() | {"rows": [row.model_dump() | {"ours": ours(row.run)} for row in table.rows]}
            for table in tables
        ],
        "results": [_result(result, comparisons, runs) for result in published.results],
    }


def judge(pairs: Sequence[Pair], where: Where, comparisons: Sequence[Comparison]) -> JsonObject:
    """Verdict of one measure's comparisons on `pairs`, which the study claims to be (better, worse)."""
    by_name = {(row.second, row.first, row.task): row for row in comparisons}
    found = []
    for second, first in pairs:
        # Only the first task or subset of `where` that was scored counts: the study's claim is about one.
        rows = (by_name.get((second, first, task)) for task in where.get(second, (POOLED,)))
        found += [row for row in rows if row][:1]
    # One significant difference in the other direction is enough to contradict a result.
    better, worse = (sum(row.verdict == verdict for row in found) for verdict in ("better", "worse"))
    verdict = "contradicted" if worse else "reproduced" if better == len(found) else UNDECIDED
    counts = f"{better} of {len(found)} comparisons in the study's direction, {worse} in the opposite one"
    left_out = f"; {len(pairs) - len(found)} not run" if len(found) < len(pairs) else ""
    sentence = f"{verdict.capitalize()}: {counts}{left_out}."
    if not found:
        verdict, sentence = "not tested", "Not tested: none of its pairs of runs is in this report."
    return {"verdict": verdict, "sentence": sentence, "tests": [row.sentence for row in found]}


def judge_by_both(pairs: Sequence[Pair], where: Where, comparisons: Sequence[Comparison]) -> JsonObject:
    """Verdict of both measures: contradicted if either contradicts, reproduced if either reproduces."""
    accuracy = judge(pairs, where, comparisons)
    bits = judge(pairs, where, [row.bits for row in comparisons if row.bits])
    if bits["verdict"] == "not tested":  # no pair of runs with bits per byte
        return accuracy | {"accuracy": accuracy, "bits": None}
    both = {"accuracy": str(accuracy["verdict"]), "bits per byte": str(bits["verdict"])}
    verdict = min(both.values(), key=_BY_WEIGHT.index)
    names = " and by ".join(name for name, said in both.items() if said == verdict)
    sentence = f"{verdict.capitalize()} by {names}."
    tests = [row for found in (accuracy, bits) for row in found["tests"]]
    tested = ((row, row.bits) for row in comparisons if row.bits and row.sentence in tests)
    opposite = [row for row, other in tested if {row.verdict, other.verdict} == {"better", "worse"}]
    if opposite or {*both.values()} == {"contradicted", "reproduced"}:
        on = ", ".join(f"{row.second} against {row.first}" for row in opposite)
        sentence += f" The two measures contradict each other{f' on {on}' if on else ''}."
    return {"verdict": verdict, "sentence": sentence, "tests": tests, "accuracy": accuracy, "bits": bits}


def _result(result: StudyResult, comparisons: Sequence[Comparison], runs: Runs) -> dict[str, JsonValue]:
    own, matched = (judge_by_both(of, result.where, comparisons) for of in (result.pairs, result.matched))
    rows = [runs[name] for pair in result.pairs for name in pair if name in runs]
    size = []  # parameters and tokens of the runs, as a range where they differ
    for field, unit in (("parameters", "parameters"), ("consumed_tokens", "tokens per run")):
        if known := [run[field] for run in rows if run[field] is not None]:
            ends = dict.fromkeys(figures.tokens(end(known)) for end in (min, max))
            size.append(f"{' to '.join(ends)} {unit}")
    texts = result.model_dump(include={"text", "published", "small"})
    texts["size"] = ", ".join(size) if own["tests"] else ""
    return own | texts | {"matched": matched if result.matched else None}
