"""The part of report.json that every rerun writes byte for byte alike: no times, no absolute paths.

Shares are of 1, losses in nats a token.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_mathcpt.manifest import Manifest
from megatron_mathcpt.report.compare import compare_runs
from megatron_mathcpt.report.curves import train_curve, validation_curves
from megatron_mathcpt.report.graph import Graph
from megatron_mathcpt.report.read import Run, TaskScore, tasks_of
from megatron_mathcpt.report.samples import choose_samples
from megatron_mathcpt.statistics import accuracy_standard_error, wilson_interval


def build_results(
    runs: Sequence[Run],
    pairs: Sequence[tuple[str, str]],
    manifests: dict[str, Manifest],
    graph: Graph,
) -> dict[str, Any]:
    """Everything the page shows but times and versions, as JSON can hold it."""
    return {
        "tasks": list(tasks_of(runs)),
        "runs": {run.name: _run(run) for run in runs},
        "comparisons": [
            {**asdict(found), "verdict": found.verdict, "sentence": found.sentence}
            for found in compare_runs(runs, pairs)
        ],
        "corpora": {
            path: manifest.counts for path, manifest in manifests.items() if manifest.kind == "corpus"
        },
        "samples": choose_samples(runs, pairs),
        "graph": {"nodes": [asdict(node) for node in graph.nodes], "edges": graph.edges},
    }


def build_timings(runs: Sequence[Run], stages: dict[str, float]) -> dict[str, Any]:
    """Seconds of each stage, and each run's median tokens a second."""
    speeds = {
        run.name: sorted(row.tokens_per_second for row in run.metrics if row.tokens_per_second is not None)
        for run in runs
    }
    return {
        "stage_seconds": stages,
        "tokens_per_second": {name: rates[len(rates) // 2] for name, rates in speeds.items() if rates},
    }


def build_versions(manifests: dict[str, Manifest]) -> dict[str, list[str]]:
    """Every version of each package, and every commit, that made some folder; one of each is best."""
    versions: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, version in {**manifest.versions, "commit": manifest.commit}.items():
            versions.setdefault(package, set()).add(version)
    return {package: sorted(found) for package, found in sorted(versions.items())}


def _run(run: Run) -> dict[str, Any]:
    counts = run.manifest.counts
    return {
        "scores": {task: _score(score, run.ungraded[task]) for task, score in run.scores.items()},
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
        "language": score.language,
        "data_sha256": score.data_sha256,
    }


def _total(scores: dict[str, TaskScore], ungraded: int) -> dict[str, Any] | None:
    """Share right of all items of all tasks, and the plain mean of the tasks' accuracies."""
    if not scores:
        return None
    n, correct = (sum(getattr(score, name) for score in scores.values()) for name in ("n", "correct"))
    low, high = wilson_interval(correct, n)
    stderr = accuracy_standard_error(correct, n)
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "stderr": None if math.isnan(stderr) else stderr,
        "low": low,
        "high": high,
        "ungraded": ungraded,
        "mean_of_tasks": sum(score.accuracy for score in scores.values()) / len(scores),
    }
