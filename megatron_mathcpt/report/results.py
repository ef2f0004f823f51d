"""The part of report.json that every rerun writes byte for byte alike: no times, no absolute paths.

Shares are of 1, losses in nats a token.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from megatron_mathcpt.config.shape import read_hf_shape
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
            share = made["accepted"] / made["outcomes"] if made["outcomes"] else 0.0
            numbers = {
                name: value
                for name, value in made.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            found[f"{path}: {method}"] = {"accepted share": round(share, 4)} | numbers
    return found


def choose_samples(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Some problems with what each run wrote, drawn without looking at how they read.

    For each comparison and task a few items of each kind (both right, only one, none), in the order of a hash
    of the item's id, so nobody picks them and every rerun picks the same. About `MOST_ITEMS` at most.
    """
    by_name = {run.name: run for run in runs}
    cells = [
        ((second, first), task, kind, ids)
        for second, first in pairs
        for task, kind, ids in _kinds(by_name[second], by_name[first])
    ]
    per_cell = max(1, MOST_ITEMS // max(1, len(cells)))
    answers: dict[tuple[str, str], dict[str, Sample]] = {}
    chosen = []
    for pair, task, kind, ids in cells:
        names = list(by_name) if len(runs) <= ALL_RUNS_UP_TO else pair[::-1]
        shown = [name for name in names if task in by_name[name].scores]
        for name in shown:
            if (name, task) not in answers:
                answers[name, task] = load_answers(by_name[name], task)
        for item in sorted(ids, key=lambda item: hashlib.sha256(item.encode()).hexdigest())[:per_cell]:
            rows = {name: answers[name, task][item] for name in shown}
            about = {"pair": list(pair), "task": task, "kind": kind, "id": item}
            any_row = rows[shown[0]]
            chosen.append(
                about
                | {"question": any_row.question, "gold": any_row.gold}
                | {"runs": {name: _shown(row) for name, row in rows.items()}}
            )
    return chosen


def _kinds(second: Run, first: Run) -> Iterator[tuple[str, str, list[str]]]:
    """Of each common task the kinds in which the two runs come out, with their items."""
    names = {
        (True, False): f"only {second.name}",
        (False, True): f"only {first.name}",
        (True, True): "both",
        (False, False): "neither",
    }
    for task in second.scores:
        if task in first.scores:
            before, after = first.outcomes[task], second.outcomes[task]
            for outcome, kind in names.items():
                ids = [item for item, right in after.items() if (right, before[item]) == outcome]
                if ids:
                    yield task, kind, ids


def _shown(row: Sample) -> dict[str, Any]:
    text = row.output
    cut = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
    return row.model_dump(include={"correct", "verdict", "extracted"}) | {"output": cut}
