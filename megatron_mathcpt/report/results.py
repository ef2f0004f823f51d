"""The part of report.json that every rerun writes byte for byte alike: no times, no absolute paths.

Shares are of 1, losses in nats a token.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_mathcpt.config.shape import read_hf_shape
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.report.compare import compare_runs
from megatron_mathcpt.report.curves import train_curve, validation_curves
from megatron_mathcpt.report.graph import Graph
from megatron_mathcpt.report.read import SUBSETS, Run, TaskScore, tasks_of
from megatron_mathcpt.report.samples import choose_samples
from megatron_mathcpt.report.study import Published, build_study, study_pairs
from megatron_mathcpt.statistics import accuracy_standard_error, wilson_interval

GENERAL = "general"


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
    return {
        "scores": {task: _score(score, run.ungraded[task]) for task, score in run.scores.items()},
        "subsets": {name: _share(list(found.values())) for name, found in run.subsets.items()},
        "total": _total(run.scores, sum(run.ungraded.values())),
        "steps": counts.get("steps"),
        "consumed_tokens": counts.get("consumed_tokens"),
        "tokens_by_source": counts.get("tokens_by_source", {}),
        "final_validation": counts.get("final_validation", {}),
        "train_loss": train_curve(run.metrics),
        "validation_loss": validation_curves(run.metrics),
        "max_abs_logit_difference": run.conversion.counts.get("max_abs_logit_difference")
        if run.conversion
        else None,
    }


def _score(score: TaskScore, ungraded: int) -> dict[str, Any]:
    low, high = wilson_interval(score.correct, score.n)
    return {
        "n": score.n,
        "correct": score.correct,
        "accuracy": score.accuracy,
        "stderr": None if math.isnan(score.stderr) else score.stderr,
        "low": low,
        "high": high,
        "ungraded": ungraded,
        "truncated_prompts": score.truncated_prompts,
        "language": score.language,
        "data_sha256": score.data_sha256,
    }


def _total(scores: dict[str, TaskScore], ungraded: int) -> dict[str, Any] | None:
    """Share right of all items of all tasks, and the plain mean of the tasks' accuracies."""
    if not scores:
        return None
    right = [number < score.correct for score in scores.values() for number in range(score.n)]
    mean = sum(score.accuracy for score in scores.values()) / len(scores)
    return _share(right) | {"ungraded": ungraded, "mean_of_tasks": mean}


def _share(right: Sequence[bool]) -> dict[str, Any]:
    n, correct = len(right), sum(right)
    low, high = wilson_interval(correct, n)
    stderr = accuracy_standard_error(correct, n)
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "stderr": None if math.isnan(stderr) else stderr,
        "low": low,
        "high": high,
    }


def _parameters(run: Run) -> int | None:
    """Parameters of the model, from the Hugging Face folder made of it."""
    folder = run.folder / "hf"
    return read_hf_shape(folder).num_parameters() if (folder / "config.json").is_file() else None


def _mathematics_tokens(manifests: dict[str, Manifest], graph: Graph) -> dict[str, int]:
    """Tokens seen of every pool but the general one, by each run and those whose weights it began with."""
    own = {
        name: sum(
            part["seen"] for pool, part in counts.get("tokens_by_source", {}).items() if pool != GENERAL
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
