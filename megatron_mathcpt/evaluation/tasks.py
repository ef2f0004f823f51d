"""An lm-eval task of ours and what becomes of it: chosen, built, prompted, judged, summed up.

Tasks come from files that a user names, as task objects, or from the YAML files of `tasks/`, which name the
functions `dataset`, `prompt` and `score` of this module. lm-eval's own index of tasks, which takes 13 s to
load, is never touched.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError, first_error
from megatron_mathcpt.formats.benchmark import (
    STUDY_SETS,
    Item,
    ItemFile,
    choose_sets,
    examples_for,
    load_items,
    spread,
)
from megatron_mathcpt.formats.evaluation_folder import Sample, SampleScore, TaskScore
from megatron_mathcpt.records import cpt_text
from megatron_mathcpt.statistics import accuracy_standard_error, score_samples, wilson_interval

TASKS_FOLDER = Path(__file__).parent / "tasks"
FEW_SHOT = "_few_shot"
# What starts the next question or ends the answer; the end-of-sequence token stops a model anyway.
STOP = ["\n\n", "\nQuestion:", "\n问题："]


def plan(
    tasks: Sequence[str],
    benchmarks: Path | None,
    sets: str,
    *,
    shots: int = 0,
    limit: int | None = None,
    benchmark_limit: int | None = None,
    **settings: Any,
) -> tuple[dict[str, Path], EvaluationConfig]:
    """Files by task name, and the config; raises `EvaluationError` for what cannot be scored.

    `tasks` are NAME=FILE or folders, `sets` are those of the folder `benchmarks` by name; with `shots` each
    comes in a second form.
    """
    files = {name: file for text in tasks for name, file in named_files(text).items()}
    limits = dict.fromkeys(files, limit)
    if benchmarks:
        found = choose_sets(str(benchmarks), sets)
        files |= found
        limits |= dict.fromkeys(found, benchmark_limit or limit)
    if not files:
        raise EvaluationError("no task: give --task NAME=FILE or --benchmarks DIR")
    few_shot = {name + FEW_SHOT: shots for name in files if shots}
    limits |= {name + FEW_SHOT: limit for name, limit in limits.items() if shots}
    files |= {name + FEW_SHOT: file for name, file in files.items() if shots}
    limited = {name: count for name, count in limits.items() if count}
    try:
        config = EvaluationConfig(tasks=tuple(files), limits=limited, shots=few_shot, **settings)
    except ValidationError as error:
        field, message = first_error(error)
        raise EvaluationError(f"{field or 'settings'}: {message.removeprefix('Value error, ')}") from error
    return files, config


def named_files(text: str) -> dict[str, Path]:
    """Tasks by name, given as NAME=FILE or as a folder of `*.jsonl` files; raises `EvaluationError`."""
    if Path(text).is_dir():
        return {file.stem: file for file in sorted(Path(text).glob("*.jsonl"))}
    name, equals, file = text.partition("=")
    if not equals or not name.replace("_", "").isalnum() or not file:
        raise EvaluationError(f"--task {text}: expected NAME=FILE, NAME of letters, digits, _; or a folder")
    return {name: Path(file)}


def dataset(
    benchmark_set: str,
    shots: int = 0,
    benchmarks: str | None = None,
    items_per_set: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """lm-eval's dataset of one of `SETS`, each item with its prompt.

    `benchmarks` (from `--metadata`) or MATHCPT_BENCHMARKS names the folder; `samples` is the small sets of
    this package. Raises `EvaluationError` when a file is missing or wrong.
    """
    root = benchmarks or os.environ.get("MATHCPT_BENCHMARKS")
    if not root:
        raise EvaluationError(
            "MATHCPT_BENCHMARKS is not set: name the folder of benchmark sets, or `samples` for the small "
            "ones of this package"
        )
    from datasets import Dataset

    path = choose_sets(root, benchmark_set)[benchmark_set]
    items = spread(load_items(path).items, items_per_set)
    texts = zip(items, prompts(items, path, shots), strict=True)
    return {"test": Dataset.from_list([item.model_dump() | {"prompt": text} for item, text in texts])}


def prompts(items: tuple[Item, ...], path: Path, shots: int) -> list[str]:
    """The prompt of each of `items`, of the file `path`: `shots` worked examples, then the question."""
    prefixes = {
        language: "".join(cpt_text(example) + "\n\n" for example in examples)
        for language, examples in examples_for(items, path, shots).items()
    }
    return [prefixes[item.lang] + item.prompt() for item in items]


def score(doc: dict[str, Any], outputs: list[Any]) -> dict[str, float]:
    """lm-eval's metrics of one item: its share of right samples, and of those the grader could not tell."""
    found = outputs[0] if isinstance(outputs[0], list) else outputs
    verdicts = [judge(Item.model_validate(doc), output)["verdict"] for output in found]
    right, unclear = (verdicts.count(status) / len(verdicts) for status in ("correct", "ungraded"))
    return {"accuracy": right, "ungraded": unclear}


def judge(item: Item, output: str) -> dict[str, Any]:
    """What samples and responses record of an output: its answer, how it was found, and the verdict.

    A choice may be answered by its letter or by the text of the right option.
    """
    extraction = extract_answer(output, item.lang, item.type)
    verdict = grade(item.answer, extraction.text, item.type)
    if item.type == "choice" and verdict.equal is not True and extraction.method in ("box", "phrase"):
        option = item.choices["ABCDEFGH".index(item.answer)] if item.choices else item.answer_text
        by_text = grade(option or "", extraction.text)
        verdict = by_text if option and by_text.equal else verdict
    return {
        "correct": verdict.equal is True,
        "verdict": verdict.status,
        "reason": verdict.reason,
        "extracted": extraction.text,
        "method": extraction.method,
    }


def summarize(
    name: str, file: ItemFile, samples: list[Sample], truncated: int, config: EvaluationConfig
) -> TaskScore:
    """Scores of one task by its answers, in the items' order; `truncated` prompts were cut."""
    first = [row for row in samples if not row.sample]
    correct = sum(row.correct for row in first)
    items = spread(file.items, config.limits.get(name))
    return TaskScore(
        n=len(first),
        items_in_file=len(file.items),
        shots=config.shots.get(name, 0),
        correct=correct,
        ungraded=sum(row.verdict == "ungraded" for row in first),
        accuracy=correct / len(first),
        stderr=accuracy_standard_error(correct, len(first)),
        wilson_95=list(wilson_interval(correct, len(first))),
        methods=dict(sorted(Counter(row.method for row in first).items())),
        language="+".join(sorted({item.lang for item in items})),
        data_sha256=file.sha256,
        truncated_prompts=truncated,
        samples=_sample_scores(items, samples, config.samples) if config.samples > 1 else None,
    )


def _sample_scores(items: Sequence[Item], samples: list[Sample], count: int) -> dict[str, SampleScore]:
    answers = [samples[start : start + count] for start in range(0, len(samples), count)]
    voted = []
    for item, rows in zip(items, answers, strict=True):
        most = majority([row.extracted or "" for row in rows], item.type)
        voted.append(bool(most) and any(row.correct for row in rows if row.extracted == most))
    scores = score_samples([[row.correct for row in rows] for rows in answers], voted)
    return {name: SampleScore(value=value, stderr=error) for name, (value, error) in scores.items()}


def majority(answers: Sequence[str], kind: str) -> str:
    """The answer that most of `answers` are equal to; the first of those with the same count, '' if none."""
    counts: Counter[str] = Counter()  # by the first of those that are equal
    for answer in filter(None, answers):
        same = (first for first in counts if first == answer or grade(first, answer, kind).equal)
        counts[next(same, answer)] += 1
    return max(counts, key=counts.__getitem__, default="")


def aggregates(tasks: dict[str, TaskScore]) -> dict[str, Any]:
    """The study's: `higher_of_forms` for each set scored in both forms, `mean_of_four` of all four sets.

    Taking the higher of two noisy scores is biased upwards; both forms stay in the results beside it.
    """
    best = dict(tasks)
    higher: dict[str, dict[str, Any]] = {}
    for name, zero in tasks.items():
        if few := tasks.get(name + FEW_SHOT):
            form, found = (name + FEW_SHOT, few) if few.accuracy > zero.accuracy else (name, zero)
            higher[name] = {"form": form, "accuracy": found.accuracy, "stderr": found.stderr, "n": found.n}
            best[name] = found
    known = [score for name in STUDY_SETS if (score := best.get(name) or tasks.get(name + FEW_SHOT))]
    result: dict[str, Any] = {"higher_of_forms": higher} if higher else {}
    if len(known) == len(STUDY_SETS):
        result["mean_of_four"] = {
            "accuracy": sum(score.accuracy for score in known) / len(known),
            "stderr": math.sqrt(sum(score.stderr**2 for score in known)) / len(known),
        }
    return result
