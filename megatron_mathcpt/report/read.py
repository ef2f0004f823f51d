"""What the stages left in a results folder: its runs as rows of text, and whole, checked against one another.

A run's folder holds `metrics.jsonl` and its manifest; `hf/` and `evaluation/` below it are there for runs
that were converted and scored. Times are kept apart from results, which are the same after every rerun.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats.evaluation_folder import (
    KIND,
    Sample,
    TaskScore,
    load_first_answers,
    load_results,
    samples_path,
)
from megatron_mathcpt.formats.files import read_json
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest
from megatron_mathcpt.formats.run_folder import METRICS, MetricRow, read_metrics
from megatron_mathcpt.report import figures

# Least number of reasoning steps. The study splits by steps too; its boundaries are unknown, these ours.
_STEPS = (("up to 2 steps", 0), ("3 or 4 steps", 3), ("5 and more steps", 5))
SUBSETS = ("primary school", "middle school", "high school", *(name for name, _ in _STEPS))
LIST_HEADINGS = ("run", "state", "steps", "tokens", "loss", "validation loss", "accuracy in %")


def list_runs(root: Path) -> list[tuple[str, ...]]:
    """One row a run below `root`, as `LIST_HEADINGS` says; raises `DataError` if there is none."""
    return [_status(root / name, name) for name in _find(root, "run")]


def finished_runs(root: Path) -> list[str]:
    """Names of the runs below `root` that are finished or scored; raises `DataError` if there is none."""
    return _find(root, "finished run")


def _find(root: Path, what: str) -> list[str]:
    """Folders that were trained in or scored, by path relative to `root`, sorted."""
    found = []
    for name, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "checkpoints")
        done = FILE_NAME in files or what == "run"
        if (METRICS in files and done) or _is_scored(Path(name)):
            found.append(Path(name).relative_to(root).as_posix())
    if not found:
        raise DataError(f"{root}: no {what} below this folder; give a folder of results")
    return found


def _is_scored(folder: Path) -> bool:
    return (folder / "evaluation" / FILE_NAME).is_file()


def _status(folder: Path, name: str) -> tuple[str, ...]:
    rows = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else ()
    scores = load_results(folder / "evaluation").tasks if _is_scored(folder) else {}
    state = "scored" if scores else "done" if (folder / FILE_NAME).is_file() else "not finished"
    losses = [row.loss for row in rows if row.loss is not None]
    validation = next((row.validation for row in reversed(rows) if row.validation), {})
    cells = (
        str(rows[-1].step) if rows else "",
        figures.tokens(rows[-1].consumed_tokens if rows else None),
        figures.number(losses[-1] if losses else None),
        ", ".join(f"{pool} {loss:.3f}" for pool, loss in validation.items()),
        ", ".join(f"{task} {figures.points(score.accuracy)}" for task, score in scores.items()),
    )
    return name, state, *(cell or figures.MISSING for cell in cells)


@dataclass(frozen=True)
class Run:
    """One run: its manifest, rows of metrics, and, if scored, its tasks and the items it got right.

    `outcomes` maps a task to {item id: correct}, in the order of the items; `subsets` maps a school stage or
    a difficulty to the same over all tasks. A model that was only scored has no manifest and no metrics.
    """

    name: str
    folder: Path
    manifest: Manifest | None
    metrics: tuple[MetricRow, ...]
    scores: dict[str, TaskScore]
    outcomes: dict[str, dict[str, bool]]
    subsets: dict[str, dict[str, bool]]


def load_runs(root: Path, names: Sequence[str]) -> tuple[Run, ...]:
    """The runs `names` below `root`, in that order.

    Raises `ManifestError` for an incomplete folder, `DataError` or `EvaluationError` naming a damaged file,
    and `EvaluationError` if two runs were scored on different items.
    """
    runs = tuple(_load_run(root / name, name) for name in names)
    for task in tasks_of(runs):
        scored = [run for run in runs if task in run.scores]
        for run in scored[1:]:
            if list(run.outcomes[task]) != list(scored[0].outcomes[task]):
                here, there = (samples_path(found.folder / "evaluation", task) for found in (run, scored[0]))
                raise EvaluationError(f"{here}: other items than {there}; score both runs on the same data")
    return runs


def tasks_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """Every task that some run was scored on, in order of first appearance."""
    return tuple(dict.fromkeys(task for run in runs for task in run.scores))


def load_timings(path: Path) -> dict[str, float]:
    """Seconds of each stage; none if the runner left no file."""
    if not path.is_file():
        return {}
    return read_json(path, dict[str, float], "delete the file, it holds times alone")


def _load_run(folder: Path, name: str) -> Run:
    scored, scores = folder / "evaluation", {}
    if _is_scored(folder):
        load_manifest(scored, KIND)
        scores = load_results(scored).tasks
    trained = (folder / METRICS).exists() or not _is_scored(folder)
    answers = {task: load_first_answers(scored, task, score) for task, score in scores.items()}
    return Run(
        name=name,
        folder=folder,
        manifest=load_manifest(folder, "run") if trained else None,
        metrics=read_metrics(folder / METRICS) if trained else (),
        scores=scores,
        outcomes={task: {row.id: row.correct for row in rows} for task, rows in answers.items()},
        subsets=_subsets(answers),
    )


def _subsets(answers: dict[str, list[Sample]]) -> dict[str, dict[str, bool]]:
    """Outcomes by school stage and by difficulty, where an item's source tells."""
    found: dict[str, dict[str, bool]] = {name: {} for name in SUBSETS}
    for task, rows in answers.items():
        for row in rows:
            if row.stage:
                found[f"{row.stage} school"][f"{task} {row.id}"] = row.correct
            if row.steps is not None:
                subset = [name for name, least in _STEPS if row.steps >= least][-1]
                found[subset][f"{task} {row.id}"] = row.correct
    return {name: outcomes for name, outcomes in found.items() if outcomes}
