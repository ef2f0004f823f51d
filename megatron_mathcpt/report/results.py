"""The part of report.json that every rerun writes byte for byte alike: no times, no absolute paths.

Shares are of 1, losses in nats a token.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_mathcpt.config.llama import read_hf_shape
from megatron_mathcpt.formats.evaluation_folder import Sample, TaskScore
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.run_folder import RunCounts
from megatron_mathcpt.report.comparison import compare_runs
from megatron_mathcpt.report.graph import Graph
from megatron_mathcpt.report.plot import train_curve, validation_curves
from megatron_mathcpt.report.read import SUBSETS, Run, load_answers, tasks_of
from megatron_mathcpt.report.study import Published, build_study, study_pairs
from megatron_mathcpt.statistics import accuracy_standard_error, wilson_interval

GENERAL = "general"
MOST_ITEMS = 24  # of those shown with what the runs wrote
MOST_CHARACTERS = 700
ALL_RUNS_UP_TO = 4  # with more runs an item shows the two compared alone


def build_results(
    runs: Sequence[Run],
    pairs: Sequence[tuple[str, str]],
    manifests: dict[str, Manifest],
    graph: Graph,
    published: Published | None,
) -> dict[str, Any]:
    """Everything the page shows but times and versions, as JSON can hold it.

    With `published`, the pairs of the study's results join the comparisons, and with them Holm's families.
    """
    asked = list(dict.fromkeys([*pairs, *(study_pairs(published, runs) if published else ())]))
    comparisons = compare_runs(runs, asked)
    sizes = {run.name: _parameters(run) for run in runs}
    tokens = _mathematics_tokens(manifests, graph)
    return {
        "tasks": list(tasks_of(runs)),
        "subsets": [name for name in SUBSETS if any(name in run.subsets for run in runs)],
        "runs": {
            run.name: _run(run)
            | {"parameters": sizes[run.name], "mathematics_tokens": tokens.get(run.name, 0)}
            for run in runs
        },
        "comparisons": [
            {**asdict(found), "verdict": found.verdict, "sentence": found.sentence} for found in comparisons
        ],
        "study": build_study(published, runs, comparisons, sizes) if published else None,
        "corpora": _counts(manifests, "corpus"),
        "synthesis": _synthesis(_counts(manifests, "synthesis")),
        "samples": choose_samples(runs, asked),
        "graph": {"nodes": [asdict(node) for node in graph.nodes], "edges": graph.edges},
    }


def build_timings(runs: Sequence[Run], stages: dict[str, float]) -> dict[str, Any]:
    """Seconds of each stage; each run's median tokens a second, and the seconds it really trained."""
    steps = {run.name: _steps(run) for run in runs}
    return {
        "stage_seconds": stages,
        "tokens_per_second": {
            name: sorted(rate for _, rate in rows)[len(rows) // 2] for name, rows in steps.items() if rows
        },
        "training_seconds": {
            name: sum(tokens / rate for tokens, rate in rows) for name, rows in steps.items() if rows
        },
    }


def _steps(run: Run) -> list[tuple[int, float]]:
    """Tokens and tokens a second of each training step."""
    rows = [row for row in run.metrics if row.tokens_per_second]
    before = [0, *(row.consumed_tokens for row in rows)]
    return [
        (row.consumed_tokens - start, row.tokens_per_second)
        for row, start in zip(rows, before, strict=False)
        if row.tokens_per_second
    ]


def build_versions(manifests: dict[str, Manifest]) -> dict[str, list[str]]:
    """Every version of each package, and every commit, that made some folder; one of each is best."""
    versions: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, version in {**manifest.versions, "commit": manifest.commit}.items():
            versions.setdefault(package, set()).add(version)
    return {package: sorted(found) for package, found in sorted(versions.items())}


def _run(run: Run) -> dict[str, Any]:
    counts = run.counts
    validation = counts.final_validation or {} if counts else {}
    sources = counts.tokens_by_source if counts else {}
    return {
        "scores": {task: _score(score, run.ungraded[task]) for task, score in run.scores.items()},
        "subsets": {name: _share(sum(found.values()), len(found)) for name, found in run.subsets.items()},
        "total": _total(run) if run.scores else None,
        "steps": counts and counts.steps,
        "consumed_tokens": counts and counts.consumed_tokens,
        "tokens_by_source": {pool: part.model_dump() for pool, part in sources.items()},
        "final_validation": {pool: _number(loss) for pool, loss in validation.items()},
        "train_loss": train_curve(run.metrics),
        "validation_loss": validation_curves(run.metrics),
        "max_abs_logit_difference": run.conversion and run.conversion.counts.get("max_abs_logit_difference"),
    }


def _score(score: TaskScore, ungraded: int) -> dict[str, Any]:
    return _share(score.correct, score.n) | {
        "accuracy": score.accuracy,
        "stderr": _number(score.stderr),
        "ungraded": ungraded,
        "truncated_prompts": score.truncated_prompts,
        "language": score.language,
        "data_sha256": score.data_sha256,
    }


def _total(run: Run) -> dict[str, Any]:
    """Share right of all items of all tasks, and the plain mean of the tasks' accuracies."""
    scores = run.scores.values()
    return _share(sum(score.correct for score in scores), sum(score.n for score in scores)) | {
        "ungraded": sum(run.ungraded.values()),
        "mean_of_tasks": sum(score.accuracy for score in scores) / len(scores),
    }


def _share(correct: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(correct, n)
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "stderr": _number(accuracy_standard_error(correct, n)),
        "low": low,
        "high": high,
    }


def _number(value: float | None) -> float | None:
    """JSON has no number for what is none, such as the error of one item."""
    return None if value is None or math.isnan(value) else value


def _parameters(run: Run) -> int | None:
    """Parameters of the model, from the Hugging Face folder made of it."""
    folder = run.folder / "hf"
    return read_hf_shape(folder).num_parameters() if (folder / "config.json").is_file() else None


def _mathematics_tokens(manifests: dict[str, Manifest], graph: Graph) -> dict[str, int]:
    """Tokens seen of every pool but the general one, by each run and those whose weights it began with."""
    own = {
        name: sum(
            part.seen
            for pool, part in RunCounts.model_validate(counts).tokens_by_source.items()
            if pool != GENERAL
        )
        for name, counts in _counts(manifests, "run").items()
    }
    total: dict[str, int] = {}
    for node in graph.nodes:
        parents = (start for start, end in graph.edges if end == node.name)
        total[node.name] = own.get(node.name, 0) + sum(total[parent] for parent in parents)
    return total


def _counts(manifests: dict[str, Manifest], kind: str) -> dict[str, dict[str, Any]]:
    return {path: manifest.counts for path, manifest in manifests.items() if manifest.kind == kind}


def _synthesis(folders: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What each method of each folder came to: its counts, the share accepted of its outcomes, its cost."""
    found = {}
    for path, counts in folders.items():
        for method, made in counts["methods"].items():
            plain = {name: value for name, value in made.items() if not isinstance(value, dict)}
            share = made["accepted"] / made["outcomes"] if made["outcomes"] else 0.0
            found[f"{path}: {method}"] = {"accepted share": round(share, 4)} | _numbers(plain)
    return found


def _numbers(counts: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested counts, by their path."""
    found: dict[str, float] = {}
    for name, value in counts.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}, ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


@dataclass(frozen=True)
class Cell:
    """Items of `task` on which `second` and `first` come out as `kind` says."""

    second: str
    first: str
    task: str
    kind: str
    ids: tuple[str, ...]


def choose_samples(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Some problems with what each run wrote, drawn without looking at how they read.

    For each comparison and task a few items of each kind (both right, only one, none), in the order of a hash
    of the item's id, so nobody picks them and every rerun picks the same. About `MOST_ITEMS` at most.
    """
    by_name = {run.name: run for run in runs}
    cells = [cell for second, first in pairs for cell in _cells(by_name[second], by_name[first])]
    per_cell = max(1, MOST_ITEMS // max(1, len(cells)))
    answers: dict[tuple[str, str], dict[str, Sample]] = {}
    chosen = []
    for cell in cells:
        names = list(by_name) if len(runs) <= ALL_RUNS_UP_TO else [cell.first, cell.second]
        shown = [by_name[name] for name in names if cell.task in by_name[name].scores]
        for run in shown:
            if (run.name, cell.task) not in answers:
                answers[run.name, cell.task] = load_answers(run, cell.task)
        for item in sorted(cell.ids, key=_draw)[:per_cell]:
            rows = {run.name: answers[run.name, cell.task][item] for run in shown}
            chosen.append(_as_mapping(cell, item, rows))
    return chosen


def _cells(second: Run, first: Run) -> list[Cell]:
    kinds = {
        (True, False): f"only {second.name}",
        (False, True): f"only {first.name}",
        (True, True): "both",
        (False, False): "neither",
    }
    cells = []
    for task in second.scores:
        if task in first.scores:
            ids: dict[tuple[bool, bool], list[str]] = {outcome: [] for outcome in kinds}
            for item, right in second.outcomes[task].items():
                ids[right, first.outcomes[task][item]].append(item)
            cells += [
                Cell(second.name, first.name, task, kind, tuple(ids[outcome]))
                for outcome, kind in kinds.items()
                if ids[outcome]
            ]
    return cells


def _as_mapping(cell: Cell, item: str, rows: dict[str, Sample]) -> dict[str, Any]:
    any_row = next(iter(rows.values()))
    return {
        "pair": [cell.second, cell.first],
        "task": cell.task,
        "kind": cell.kind,
        "id": item,
        "question": any_row.question,
        "gold": any_row.gold,
        "runs": {
            name: {
                "correct": row.correct,
                "verdict": row.verdict,
                "extracted": row.extracted,
                "output": _cut(row.output),
            }
            for name, row in rows.items()
        },
    }


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


def _draw(item: str) -> str:
    return hashlib.sha256(item.encode()).hexdigest()
