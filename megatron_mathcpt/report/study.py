"""Our runs beside the figures that arXiv 2501.14002 published, and what they say about its five results.

Published figures live in published.yaml. Only the study's own public sets (GSM8K, MATH) are set beside ours;
a result is judged by the Holm-corrected paired tests of our runs alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.report import figures
from megatron_mathcpt.report.comparison import POOLED, Comparison
from megatron_mathcpt.report.read import Run

Pair = tuple[str, str]
_WORDS = {"holds": "Holds", "fails": "Does not hold", "not distinguishable": "Not distinguishable"}


class PublishedSet(Section):
    """One evaluation set of the study: our task on the same items, if there is one, and its whole size."""

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
    """One table of the study."""

    title: str
    note: str
    rows: tuple[PublishedRow, ...]


class StudyResult(Section):
    """One result of the study: pairs (better, worse) that it claims, and pairs free of its confounds."""

    text: str
    published: str
    pairs: tuple[Pair, ...]
    matched: tuple[Pair, ...] = ()
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Published(Section):
    """All that is used of the study."""

    sets: tuple[PublishedSet, ...]
    tables: tuple[PublishedTable, ...]
    results: tuple[StudyResult, ...]


def load_published() -> Published:
    """The study's figures."""
    return load_config(Path(__file__).with_name("published.yaml"), Published)


def study_pairs(published: Published, runs: Sequence[Run]) -> list[Pair]:
    """Every pair of the study's results of which both runs are there and scored."""
    scored = {run.name for run in runs if run.scores}
    pairs = [pair for result in published.results for pair in (*result.pairs, *result.matched)]
    return [pair for pair in dict.fromkeys(pairs) if set(pair) <= scored]


def build_study(
    published: Published, runs: Mapping[str, Any], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """Tables with a row of ours, and a judgement of each result; `runs` are those of report.json."""

    def ours(run: str) -> list[dict[str, Any] | None]:
        """Our score on each of the study's sets; `whole` tells whether it is on all items of the set."""
        scores = runs[run]["scores"] if run in runs else {}
        return [
            {name: score[name] for name in ("accuracy", "stderr", "n")} | {"whole": score["n"] == found.items}
            if (score := scores.get(found.task))
            else None
            for found in published.sets
        ]

    tables = [table for table in published.tables if any(row.run in runs for row in table.rows)]
    scored = {task for run in runs.values() for task in run["scores"]}
    return {
        "sets": [found.model_dump() | {"ours": found.task in scored} for found in published.sets],
        "tables": [
            table.model_dump() | {"rows": [row.model_dump() | {"ours": ours(row.run)} for row in table.rows]}
            for table in tables
        ],
        "results": [_result(result, comparisons, runs) for result in published.results],
    }


def judge(
    pairs: Sequence[Pair], where: dict[str, tuple[str, ...]], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """What the comparisons say about `pairs`; a pair that was not run on the items asked for is left out.

    The verdict is `holds` if all come out as the study says, `fails` if one is opposite.
    """
    by_name = {(row.second, row.first, row.task): row for row in comparisons}
    found = []
    for second, first in pairs:
        rows = (by_name.get((second, first, task)) for task in where.get(second, (POOLED,)))
        found += [row for row in rows if row][:1]
    better, worse = (sum(row.verdict == verdict for row in found) for verdict in ("better", "worse"))
    verdict = "fails" if worse else "holds" if better == len(found) else "not distinguishable"
    counts = f"{better} of {len(found)} comparisons as the study says, {worse} the other way round"
    left_out = f"; {len(pairs) - len(found)} not run" if len(found) < len(pairs) else ""
    sentence = f"{_WORDS[verdict]} here: {counts}{left_out}."
    if not found:
        verdict, sentence = "not tested", "Not tested: none of its pairs of runs is here."
    return {"verdict": verdict, "sentence": sentence, "tests": [row.sentence for row in found]}


def _result(
    result: StudyResult, comparisons: Sequence[Comparison], runs: Mapping[str, Any]
) -> dict[str, Any]:
    own, matched = (judge(pairs, result.where, comparisons) for pairs in (result.pairs, result.matched))
    rows = [runs[name] for pair in result.pairs for name in pair if name in runs]
    size = []  # parameters and tokens of the runs, as a range where they differ
    for field, unit in (("parameters", "parameters"), ("consumed_tokens", "tokens a run")):
        if known := [run[field] for run in rows if run[field] is not None]:
            ends = dict.fromkeys(figures.tokens(end(known)) for end in (min, max))
            size.append(f"{' to '.join(ends)} {unit}")
    return own | {
        **result.model_dump(include={"text", "published"}),
        "size": ", ".join(size) if own["tests"] else "",
        "matched": matched if result.matched else None,
    }
