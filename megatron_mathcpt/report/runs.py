"""The runs of a results folder as rows of text, for a terminal: finished, scored, or still on their way."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import FILE_NAME
from megatron_mathcpt.formats.run_folder import MetricRow, read_metrics
from megatron_mathcpt.report import format as formats
from megatron_mathcpt.report.compare import compare_runs
from megatron_mathcpt.report.read import Run, load_runs, load_scores

Rows = list[tuple[str, ...]]
LIST_HEADINGS = ("run", "state", "steps", "tokens", "loss", "validation loss", "accuracy in %")


def list_runs(root: Path) -> Rows:
    """One row a run below `root`, as `LIST_HEADINGS` says; raises `DataError` if there is none."""
    names = list(_find(root))
    if not names:
        raise DataError(f"{root}: no run below this folder; give a folder of results")
    return [_summary(root, name) for name in names]


def finished_runs(root: Path) -> list[str]:
    """Names of the runs below `root` that are finished or scored; raises `DataError` if there is none."""
    names = [name for name in _find(root) if _is_finished(root / name) or _is_scored(root / name)]
    if not names:
        raise DataError(f"{root}: no finished run below this folder; give a folder of results")
    return names


def show_run(root: Path, name: str) -> Rows:
    """What a run is made from and came to, as (what, value); raises `ManifestError` if not finished."""
    (run,) = load_runs(root, [name])
    if run.manifest is None:
        return [*_scores(run)]
    made_from = [(f"from {label}", value[:12]) for label, value in run.manifest.inputs.items()]
    tokens = [
        (f"tokens, {pool}", f"{formats.tokens(part['seen'])} of {formats.tokens(part['asked'])} asked for")
        for pool, part in run.counts.get("tokens_by_source", {}).items()
    ]
    losses = [
        (f"validation loss, {pool}", formats.number(loss))
        for pool, loss in run.counts.get("final_validation", {}).items()
    ]
    return [
        ("finished", run.manifest.created),
        ("steps", str(run.counts.get("steps", formats.MISSING))),
        ("tokens", formats.tokens(run.counts.get("consumed_tokens"))),
        *tokens,
        *losses,
        *_scores(run),
        *made_from,
        ("commit", run.manifest.commit),
        ("command", " ".join(run.manifest.command)),
    ]


def compare_two(root: Path, second: str, first: str) -> tuple[Rows, list[str]]:
    """Settings that differ, as (field, value of second, value of first), and the paired tests in words."""
    runs = load_runs(root, [first, second])
    before, after = (_flat(run.manifest.config) if run.manifest else {} for run in runs)
    fields = [field for field in {**before, **after} if before.get(field) != after.get(field)]
    rows: Rows = [
        (field, *(str(side.get(field, formats.MISSING)) for side in (after, before))) for field in fields
    ]
    scored = all(run.scores for run in runs)
    return rows, [row.sentence for row in compare_runs(runs, [(second, first)])] if scored else []


def _find(root: Path) -> Iterator[str]:
    """Folders that were trained in or scored, by path relative to `root`, sorted."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "checkpoints")
        if "metrics.jsonl" in files or _is_scored(Path(folder)):
            yield Path(folder).relative_to(root).as_posix()


def _is_finished(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file()


def _is_scored(folder: Path) -> bool:
    return (folder / "evaluation" / FILE_NAME).is_file()


def _summary(root: Path, name: str) -> tuple[str, ...]:
    folder = root / name
    metrics = folder / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.is_file() else ()
    scored = _is_scored(folder)
    scores = load_scores(folder / "evaluation" / "results.json") if scored else {}
    state = "scored" if scored else "done" if _is_finished(folder) else "not finished"
    last = rows[-1] if rows else None
    return (
        name,
        state,
        str(last.step) if last else formats.MISSING,
        formats.tokens(last.consumed_tokens if last else None),
        formats.number(next((row.loss for row in reversed(rows) if row.loss is not None), None)),
        _validation(rows),
        ", ".join(f"{task} {formats.points(score.accuracy)}" for task, score in scores.items())
        or formats.MISSING,
    )


def _validation(rows: tuple[MetricRow, ...]) -> str:
    last = next((row.validation for row in reversed(rows) if row.validation), {})
    return ", ".join(f"{pool} {loss:.3f}" for pool, loss in last.items()) or formats.MISSING


def _scores(run: Run) -> Rows:
    return [
        (
            f"accuracy, {task}",
            f"{formats.points(score.accuracy)} ± {formats.points(score.stderr)} ({score.n} items)",
        )
        for task, score in run.scores.items()
    ]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full path."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
