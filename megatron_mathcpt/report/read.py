"""Read what the stages left in a results folder, checked against what they promise.

A run's folder holds `metrics.jsonl` and its manifest; `hf/` and `evaluation/` below it are there for runs
that were converted and scored. Times are kept apart from results, which are the same after every rerun.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats.files import Row, explain, read_rows
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest
from megatron_mathcpt.formats.run_folder import MetricRow, read_metrics
from megatron_mathcpt.records import Stage

# Least number of reasoning steps. The study splits by steps too; its boundaries are unknown, these ours.
_STEPS = (("up to 2 steps", 0), ("3 or 4 steps", 3), ("5 and more steps", 5))
SUBSETS = ("primary school", "middle school", "high school", *(name for name, _ in _STEPS))


class TaskScore(Row):
    """One task of `evaluation/results.json`; `stderr` and `accuracy` are shares of 1."""

    n: int = Field(ge=1)
    correct: int
    accuracy: float
    stderr: float
    data_sha256: str
    language: str = ""
    truncated_prompts: int = 0


class Sample(Row):
    """One row of `evaluation/samples_<task>.jsonl`."""

    id: str
    correct: bool
    verdict: str
    extracted: str | None = None
    gold: str
    output: str
    question: str = ""
    stage: Stage | None = None
    steps: int | None = Field(default=None, ge=0)

    def subsets(self) -> tuple[str, ...]:
        """School stage and difficulty of the item, where its source tells."""
        stage = (f"{self.stage} school",) if self.stage else ()
        steps = self.steps
        return stage if steps is None else (*stage, [name for name, least in _STEPS if steps >= least][-1])


class _Results(Row):
    model: str
    tasks: dict[str, TaskScore]


@dataclass(frozen=True)
class Run:
    """One run: counts of its manifest, rows of metrics, and, if scored, its tasks and the items it got right.

    `outcomes` maps a task to {item id: correct}, in the order of the items; `subsets` maps a school stage or
    a difficulty to the same over all tasks. A model that was only scored has no manifest and no metrics.
    """

    name: str
    folder: Path
    manifest: Manifest | None
    metrics: tuple[MetricRow, ...]
    conversion: Manifest | None
    evaluation: Manifest | None
    scores: dict[str, TaskScore]
    outcomes: dict[str, dict[str, bool]]
    subsets: dict[str, dict[str, bool]]
    ungraded: dict[str, int]

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of the run's manifest."""
        return self.manifest.counts if self.manifest else {}


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
                raise EvaluationError(
                    f"{_samples_path(run.folder, task)}: other items than "
                    f"{_samples_path(scored[0].folder, task)}; score both runs on the same data"
                )
    return runs


def tasks_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """Every task that some run was scored on, in order of first appearance."""
    return tuple(dict.fromkeys(task for run in runs for task in run.scores))


def load_samples(run: Run, task: str) -> list[Sample]:
    """Every item of `task` with the run's output."""
    return read_rows(_samples_path(run.folder, task), Sample)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises `DataError` if it holds none."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run its stage again") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); run its stage again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


def load_timings(path: Path) -> dict[str, float]:
    """Seconds of each stage; none if the runner left no file."""
    if not path.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, float]).validate_python(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error)}; delete the file, it holds times alone") from error


def _load_run(folder: Path, name: str) -> Run:
    evaluation = _load_if_there(folder / "evaluation", "evaluation")
    metrics = folder / "metrics.jsonl"
    trained = metrics.exists() or evaluation is None
    scores = load_scores(folder / "evaluation" / "results.json") if evaluation else {}
    samples = {task: read_rows(_samples_path(folder, task), Sample) for task in scores}
    for task, score in scores.items():
        _check_score(_samples_path(folder, task), score, samples[task])
    return Run(
        name=name,
        folder=folder,
        manifest=load_manifest(folder, "run") if trained else None,
        metrics=read_metrics(metrics) if trained else (),
        conversion=_load_if_there(folder / "hf", "hf"),
        evaluation=evaluation,
        scores=scores,
        outcomes={task: {row.id: row.correct for row in rows} for task, rows in samples.items()},
        subsets=_subsets(samples),
        ungraded={task: sum(row.verdict == "ungraded" for row in rows) for task, rows in samples.items()},
    )


def _subsets(samples: dict[str, list[Sample]]) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = {}
    for task, rows in samples.items():
        for row in rows:
            for subset in row.subsets():
                found.setdefault(subset, {})[f"{task} {row.id}"] = row.correct
    return {name: found[name] for name in SUBSETS if name in found}


def _load_if_there(folder: Path, kind: str) -> Manifest | None:
    return load_manifest(folder, kind) if (folder / FILE_NAME).is_file() else None


def _samples_path(folder: Path, task: str) -> Path:
    return folder / "evaluation" / f"samples_{task}.jsonl"


def load_scores(path: Path) -> dict[str, TaskScore]:
    """The tasks of an evaluation's `results.json`; raises `EvaluationError` naming a wrong field."""
    try:
        return _Results.model_validate(read_json(path)).tasks
    except ValidationError as error:
        raise EvaluationError(f"{path}: {explain(error)}; evaluate the run again") from error


def _check_score(path: Path, score: TaskScore, samples: Sequence[Sample]) -> None:
    """Samples must be as many as scored, all different, and as often correct as the score says."""
    found = len({row.id for row in samples}), sum(row.correct for row in samples)
    if found != (score.n, score.correct) or len(samples) != score.n:
        raise EvaluationError(
            f"{path}: {found[1]} of {found[0]} different items correct, results.json says "
            f"{score.correct} of {score.n}; evaluate the run again"
        )
