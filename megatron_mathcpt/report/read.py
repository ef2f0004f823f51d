"""Read a results folder: its runs as rows of text, or as records checked against one another.

A run's folder contains `metrics.jsonl` and a manifest; `hf/` and `evaluation/` below it exist for runs that
were converted and scored. Timings are in a file of their own, because results are the same after every rerun.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.evaluation_folder import Sample, TaskScore, load_results, samples_path
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest, verify_part
from megatron_mathcpt.formats.run_folder import METRICS, MetricRow, read_metrics
from megatron_mathcpt.report import figures

# Minimum number of reasoning steps. The boundaries are ours: the study does not give those of its levels.
_STEPS = (("up to 2 steps", 0), ("3 or 4 steps", 3), ("5 and more steps", 5))
SUBSETS = ("primary school", "middle school", "high school", *(name for name, _ in _STEPS))
LIST_HEADINGS = ("run", "state", "steps", "tokens", "loss", "validation loss", "accuracy in %")


def list_runs(root: Path) -> list[tuple[str, ...]]:
    """A row of `LIST_HEADINGS` for each run below `root`; raises `DataError` if there is none."""
    return [_status(root / name, name) for name in _find(root, "run")]


def finished_runs(root: Path) -> list[str]:
    """Names of the finished or scored runs below `root`; raises `DataError` if there is none."""
    return _find(root, "finished run")


def _find(root: Path, what: str) -> list[str]:
    """Folders with metrics or scores, by path relative to `root`, sorted."""
    found = []
    for name, below, files in os.walk(root):
        # Checkpoints are many and large, and none of them is a run.
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
    """One run, as far as it was trained and scored."""

    name: str
    folder: Path
    manifest: Manifest | None  # None, with no metrics, for a model that was only scored
    metrics: tuple[MetricRow, ...]
    scores: dict[str, TaskScore]
    outcomes: dict[str, dict[str, bool]]  # by task: item id to correct, in the items' order
    subsets: dict[str, dict[str, bool]]  # by school stage and difficulty: the same, over all tasks


def load_runs(root: Path, names: Sequence[str]) -> tuple[Run, ...]:
    """Load the runs `names` below `root`, in that order.

    Raises a `MathCptError` naming what is incomplete or damaged, or two runs scored on different items.
    """
    runs = tuple(_load_run(root / name, name) for name in names)
    for task in tasks_of(runs):
        scored = [run for run in runs if task in run.scores]
        for run in scored[1:]:
            # Order matters too: paired tests match items by position.
            if list(run.outcomes[task]) != list(scored[0].outcomes[task]):
                path, other = (samples_path(found.folder / "evaluation", task) for found in (run, scored[0]))
                raise EvaluationError(f"{path}: other items than {other}; score both runs on the same data")
    return runs


def tasks_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """All tasks that any run was scored on, in order of first appearance."""
    return tuple(dict.fromkeys(task for run in runs for task in run.scores))


def _load_run(folder: Path, name: str) -> Run:
    scored, scores = folder / "evaluation", {}
    if _is_scored(folder):
        verify_part(scored, load_manifest(scored, evaluation_folder.KIND))
        scores = load_results(scored).tasks
    # A folder with neither is treated as a run, so that the error names its missing manifest.
    trained = (folder / METRICS).exists() or not _is_scored(folder)
    load = evaluation_folder.load_first_answers
    answers = {task: load(scored, task, score) for task, score in scores.items()}
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
    """Outcomes by school stage and by difficulty, of the items that have one."""
    found: dict[str, dict[str, bool]] = {name: {} for name in SUBSETS}
    for task, rows in answers.items():
        for row in rows:
            if row.stage:
                found[f"{row.stage} school"][f"{task} {row.id}"] = row.correct
            if row.steps is not None:
                subset = [name for name, least in _STEPS if row.steps >= least][-1]
                found[subset][f"{task} {row.id}"] = row.correct
    return {name: outcomes for name, outcomes in found.items() if outcomes}
