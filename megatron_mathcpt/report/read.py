"""Read a results folder: its runs as rows of text, or as records checked against one another.

A run's folder contains `metrics.jsonl` and a manifest; `hf/` and `evaluation/` below it exist for runs that
were converted and scored. Timings are in a file of their own, because results are the same after every rerun.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean

from megatron_mathcpt.errors import DataError, EvaluationError, first_of
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.evaluation_folder import (
    FEW_SHOT,
    Sample,
    TaskScore,
    load_results,
    samples_path,
    set_of,
)
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, leaves, load_manifest, verify_part
from megatron_mathcpt.formats.run_folder import METRICS, RUN, MetricRow, RunCounts, read_metrics
from megatron_mathcpt.log import Cell
from megatron_mathcpt.records import DIFFICULTIES, JsonObject
from megatron_mathcpt.report import figures

_LEAST = list(DIFFICULTIES.values())
# Groups by the number of reasoning steps, those of the training data: the name of each, and its least number.
_STEPS = [
    (f"{low} to {end - 1} steps" if low else f"up to {end - 1} steps", low) for low, end in pairwise(_LEAST)
]
_STEPS.append((f"{_LEAST[-1]} and more steps", _LEAST[-1]))
_LEVELS = tuple(f"level {number}" for number in range(1, 6))
_LANGUAGES = {"en": "English", "zh": "Chinese"}
_STAGES = ("primary school", "middle school", "high school")
_NUMBERS = (*(f"{number} step{'s' * (number != 1)}" for number in range(12)), "12 and more steps")
_KINDS = {"school stage": _STAGES, "steps": tuple(name for name, _ in _STEPS)}
_KINDS |= {"level": _LEVELS, "language": tuple(_LANGUAGES.values())}
SUBSETS = tuple(chain(*_KINDS.values()))  # that are tested
NUMBER_OF_STEPS = "number of steps"
_KINDS[NUMBER_OF_STEPS] = _NUMBERS
MAX_SUBJECTS = 30  # of a set; with more the field is no subject
LIST_HEADINGS = ("run", "state", "steps", "tokens", "loss", "validation loss", "accuracy in %", "begin")


def list_runs(root: Path) -> list[tuple[str, ...]]:
    """A row of `LIST_HEADINGS` for each run below `root`; raises `DataError` if there is none."""
    return [_status(root / name, name) for name in _find(root, "run")]


def finished_runs(root: Path) -> list[str]:
    """Names of the finished or scored runs below `root`; `DataError` if there is none, and no synthesis."""
    return _find(root, "finished run")


def _find(root: Path, what: str) -> list[str]:
    """Folders with metrics or scores, by path relative to `root`, sorted."""
    found, begun, synthesized = [], list[str](), False
    for name, below, files in os.walk(root):
        store = ".store" in below  # of a synthesis
        # Checkpoints are many and large, and none of them is a run.
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "checkpoints")
        done = FILE_NAME in files or what == "run"
        if (METRICS in files and done) or _is_scored(Path(name)):
            found.append(Path(name).relative_to(root).as_posix())
        elif FILE_NAME not in files and (METRICS in files or store):
            begun.append(name)
        synthesized |= what == "finished run" and {FILE_NAME, "summary.json"} <= {*files}
    if not found and not synthesized:
        remedy = "start it again to finish it" if begun else "give a folder of results"
        there = f", but unfinished {first_of(begun)}" if begun else ""
        raise DataError(f"{root}: no {what} below this folder{there}; {remedy}")
    return found


def _is_scored(folder: Path) -> bool:
    return (folder / "evaluation" / FILE_NAME).is_file()


def _status(folder: Path, name: str) -> tuple[str, ...]:
    trained, complete = ((folder / name).is_file() for name in (METRICS, FILE_NAME))
    rows = read_metrics(folder / METRICS) if trained else ()
    counts = RunCounts.model_validate(load_manifest(folder, RUN).counts) if trained and complete else None
    scores = load_results(folder / "evaluation").tasks if _is_scored(folder) else {}
    state = "scored" if scores else "done" if complete else "not finished"
    losses = [row.loss for row in rows if row.loss is not None]
    validation = next((row.validation for row in reversed(rows) if row.validation), {})
    step, tokens = (rows[-1].step, rows[-1].consumed_tokens) if rows else (None, None)
    loss = losses[-1] if losses else None
    found = {task: score.accuracy for task, score in scores.items()}
    return (
        name,
        state,
        Cell(step, str(step or figures.MISSING)),
        Cell(tokens, figures.tokens(tokens)),
        Cell(loss, figures.number(loss)),
        Cell(validation, _listed(validation, figures.number)),
        Cell(found, _listed(found, figures.points)),
        figures.begin_token(counts.begin if counts else None) or figures.MISSING,
    )


def _listed(values: Mapping[str, float], form: Callable[[float], str]) -> str:
    return ", ".join(f"{name} {form(value)}" for name, value in values.items()) or figures.MISSING


@dataclass(frozen=True)
class Run:
    """One run, as far as it was trained and scored. A set is a task, or two that are its two forms.

    Of two forms the study counts the one with the higher accuracy, chosen after both are known. This favours
    every run alike, and no test corrects for it. Bits per byte are zero-shot, unless only few-shot has them.
    """

    name: str
    folder: Path
    scored: Path  # folder of the evaluation
    manifest: Manifest | None  # None, with no metrics, for a model that was only scored
    metrics: tuple[MetricRow, ...]
    prompts_begin: str | None  # with this token, as text; None where it is not known
    scores: dict[str, TaskScore]
    outcomes: dict[str, dict[str, bool]]  # by task: item id to correct, in the items' order
    bits: dict[str, dict[str, float]]  # by task: item id to bits per byte of the gold solution
    higher: dict[str, str]  # by set: the form with the higher accuracy, or the only one
    subsets: dict[str, list[tuple[str, str]]]  # (set, item id) by name of the subset

    def right(self, of: str) -> dict[str, bool]:
        """The outcomes that count for a set."""
        return self.outcomes[self.higher[of]]

    def gold_bits(self, of: str, other: "Run | None" = None) -> dict[str, float]:
        """The bits per byte that count for a set, in a form that `other` has too; empty without any."""
        both = [run.bits for run in (self, other or self)]
        forms = (form for form in (of, of + FEW_SHOT) if all(bits.get(form) for bits in both))
        return self.bits.get(next(forms, ""), {})

    def settings(self) -> JsonObject:
        """Values of the run's config and of its evaluation's, by dotted field; an empty section sets none."""
        config = leaves(self.manifest.config) if self.manifest else {}
        if self.scores:
            config |= leaves(load_manifest(self.scored, evaluation_folder.KIND).config, "evaluation.")
        return {field: value for field, value in config.items() if value != {}}


Seeds = dict[int, Run]  # a run by the number of its seed; without others the number is 1


def pool_seeds(runs: Sequence[Run]) -> dict[str, Seeds]:
    """The runs by name, NAME with NAME_seed2 and so on, where both are scored, or neither is.

    Of the two forms of a set, the one with the higher mean accuracy over the seeds counts for each of them.
    Raises `EvaluationError` naming what differs between them other than the seed.
    """
    scored = {run.name: bool(run.scores) for run in runs}

    def place(name: str) -> tuple[str, int]:
        first, _, number = name.rpartition("_seed")
        further = re.fullmatch("[2-9]|[1-9][0-9]+", number) and scored.get(first) == scored[name]
        return (first, int(number)) if further and place(first) == (first, 1) else (name, 1)

    pools: dict[str, Seeds] = {}
    for run in runs:
        name, number = place(run.name)
        pools.setdefault(name, {})[number] = run
    return {run.name: _alike(pools[run.name]) for run in runs if run.name in pools}


def _alike(seeds: Seeds) -> Seeds:
    first, *others = (seeds[number] for number in sorted(seeds))
    for run in others:
        settings, own = _without_seed(first), _without_seed(run)
        same = [field for field in settings | own if settings.get(field) == own.get(field)]
        wrong = [field for field in settings | own if (field in same) == (field == "seed")]
        if wrong or run.scores.keys() != first.scores.keys():
            raise EvaluationError(
                f"{run.folder}: by name a seed of {first.name}, but not by {[*wrong, 'tasks'][0]}; rename it"
            )
    mean = {task: fmean(run.scores[task].accuracy for run in seeds.values()) for task in first.scores}
    return {number: replace(run, higher=_higher(mean)) for number, run in sorted(seeds.items())}


def _without_seed(run: Run) -> dict[str, str]:
    """Settings, in which names and folders are those of the first seed."""
    return {name: re.sub(r"_seed\d+(?=\W|$)", "", str(value)) for name, value in run.settings().items()}


def _higher(accuracies: Mapping[str, float]) -> dict[str, str]:
    """By set the form with the higher of these accuracies of tasks."""
    higher: dict[str, str] = {}
    for task in sorted(accuracies, key=lambda task: task.endswith(FEW_SHOT)):  # zero-shot first, if equal
        best = higher.setdefault(set_of(task), task)
        higher[set_of(task)] = max(best, task, key=accuracies.__getitem__)
    return higher


def load_runs(root: Path, names: Sequence[str]) -> tuple[Run, ...]:
    """Load the runs `names` below `root`, in that order.

    Raises a `MathCptError` naming what is incomplete or damaged, or two runs scored on different items.
    """
    runs = tuple(_load_run(root / name, name) for name in names)
    seen: dict[str, tuple[Path, list[str]]] = {}
    for run in runs:
        for task, outcomes in run.outcomes.items():
            # Order matters too: items are matched by position. Both forms of a set have the same items.
            path, items = samples_path(run.scored, task), list(outcomes)
            other, first = seen.setdefault(set_of(task), (path, items))
            if items != first:
                raise EvaluationError(f"{path}: other items than {other}; score both runs on the same data")
    return runs


def tasks_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """All tasks that any run was scored on, in order of first appearance."""
    return tuple(dict.fromkeys(task for run in runs for task in run.scores))


def subsets_of(runs: Sequence[Run]) -> JsonObject:
    """All subsets of any run's items by kind: those of no other kind are subjects."""
    there = {name for run in runs for name in run.subsets}
    kinds = _KINDS | {"subject": tuple(sorted(there.difference(*_KINDS.values())))}
    found = {kind: [name for name in names if name in there] for kind, names in kinds.items()}
    return {kind: names for kind, names in found.items() if names}


def _load_run(folder: Path, name: str) -> Run:
    # A folder that `mathcpt evaluate` wrote is an evaluation itself.
    alone = not _is_scored(folder) and (folder / evaluation_folder.RESULTS).is_file()
    scored, has_scores = folder if alone else folder / "evaluation", alone or _is_scored(folder)
    if has_scores:
        verify_part(scored, load_manifest(scored, evaluation_folder.KIND))
    results = load_results(scored) if has_scores else None
    scores = results.tasks if results else {}
    # A folder with neither is treated as a run, so that the error names its missing manifest.
    trained = (folder / METRICS).exists() or not has_scores
    load = evaluation_folder.load_first_answers
    answers = {task: load(scored, task, score) for task, score in scores.items()}
    bits = {task: dict(_bits(rows, samples_path(scored, task))) for task, rows in answers.items()}
    higher = _higher({task: score.accuracy for task, score in scores.items()})
    forms = {of: of if of in scores else form for of, form in higher.items()}
    return Run(
        name=name,
        folder=folder,
        scored=scored,
        manifest=load_manifest(folder, "run") if trained else None,
        metrics=read_metrics(folder / METRICS) if trained else (),
        prompts_begin=results.begin if results else None,
        scores=scores,
        outcomes={task: {row.id: row.correct for row in rows} for task, rows in answers.items()},
        bits=bits,
        higher=higher,
        subsets=_subsets({of: (scores[form], answers[form]) for of, form in forms.items()}),
    )


def _bits(rows: Sequence[Sample], path: Path) -> Iterator[tuple[str, float]]:
    """Bits per byte of the items that have them: folders of older versions have none."""
    for row in rows:
        if not math.isfinite(row.gold_bits or 0.0):
            raise EvaluationError(
                f"{path}: gold_bits of item '{row.id}' is no number; evaluate the run again"
            )
        if row.gold_bits is not None and row.gold_bytes:
            yield row.id, row.gold_bits / row.gold_bytes


def _subsets(answers: dict[str, tuple[TaskScore, list[Sample]]]) -> dict[str, list[tuple[str, str]]]:
    """Items by school stage, steps, level, language and subject, of those that have one."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in chain(*_KINDS.values())}
    for task, (score, rows) in answers.items():
        subjects = {row.subject for row in rows if row.subject}
        named = 1 < len(subjects) <= MAX_SUBJECTS
        found |= {name: found.get(name, []) for name in subjects if named}
        for row in rows:
            steps = row.steps is not None and [name for name, least in _STEPS if row.steps >= least][-1]
            level = f"level {str(row.level).removeprefix('Level ')}"
            language = _LANGUAGES.get(row.language or score.language)
            number = row.steps is not None and _NUMBERS[min(row.steps, 12)]
            subject = named and row.subject
            for name in found.keys() & {f"{row.stage} school", steps, level, language, number, subject}:
                found[name].append((task, row.id))
    return {name: items for name, items in found.items() if items}
