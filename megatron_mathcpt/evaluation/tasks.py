"""Select tasks, build their prompts, grade the outputs, aggregate the scores.

A task is a benchmark file that the user names, or an lm-eval YAML file of `tasks/`, which refers to `dataset`
and `score` below. lm-eval's index of its own tasks takes 13 s to build and is never loaded.
"""

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pydantic import JsonValue, ValidationError

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.answers.equations import false_equations
from megatron_mathcpt.answers.extraction import split_thinking
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError, first_error
from megatron_mathcpt.formats import benchmark
from megatron_mathcpt.formats.benchmark import STUDY_SETS, Item, ItemFile, load_items, spread
from megatron_mathcpt.formats.evaluation_folder import FEW_SHOT, Sample, SampleScore, TaskScore, set_of
from megatron_mathcpt.records import NEXT_QUESTION, JsonObject, cpt_text, response_text
from megatron_mathcpt.statistics import accuracy_standard_error, score_samples, wilson_interval

if TYPE_CHECKING:
    from datasets import Dataset

TASKS_FOLDER = Path(__file__).parent / "tasks"
# A base model does not stop after its answer: it invents the next question, whose answer must not be graded.
STOP = [*NEXT_QUESTION]
_SEPARATOR = "\n\n"  # of worked examples; its last line break begins the stop string that follows


def plan(
    tasks: Sequence[str],
    benchmarks: Path | None,
    sets: str,
    *,
    shots: str | int = "",
    limit: int | None = None,
    benchmark_limit: int | None = None,
    **settings: object,
) -> tuple[dict[str, Path], EvaluationConfig]:
    """Benchmark file of each task, and the config; raises `EvaluationError` for what cannot be scored.

    `tasks` are NAME=FILE or folders, `sets` names benchmark sets of the folder `benchmarks`. `shots` is the
    number of worked examples in each task's few-shot form, or NAME=NUMBER for some, comma-separated.
    """
    files = {name: file for text in tasks for name, file in named_files(text).items()}
    limits = dict.fromkeys(files, limit)
    if benchmarks:
        found = benchmark.choose_sets(str(benchmarks), sets)
        files |= found
        limits |= dict.fromkeys(found, benchmark_limit or limit)
    if not files:
        raise EvaluationError("no task: give --task NAME=FILE or --benchmarks DIR")
    # The study scores each set in two forms: a task gets a second one, NAME_few_shot.
    counts = _count_shots(str(shots), files)
    few_shot = {name + FEW_SHOT: count for name, count in counts.items() if count}
    if twice := sorted(few_shot.keys() & files.keys()):
        raise EvaluationError(f"task '{twice[0]}': is the few-shot form of another; rename its file")
    limits |= {form: limits[set_of(form)] for form in few_shot}
    files |= {form: files[set_of(form)] for form in few_shot}
    limited = {name: count for name, count in limits.items() if count}
    fields = {"tasks": tuple(files), "limits": limited, "shots": few_shot, **settings}
    try:
        return files, EvaluationConfig.model_validate(fields)
    except ValidationError as error:
        field, message = first_error(error)
        raise EvaluationError(f"{field or 'settings'}: {message.removeprefix('Value error, ')}") from error


def _count_shots(text: str, names: Collection[str]) -> dict[str, int]:
    if text.isdecimal():
        return dict.fromkeys(names, int(text))
    counts: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, count = part.strip().partition("=")
        if not count.isdecimal() or name in counts:
            raise EvaluationError(f"--shots {text}: expected a number, or NAME=NUMBER once for each set")
        if name not in names:
            raise EvaluationError(f"--shots {part}: '{name}' is not scored; the sets are {', '.join(names)}")
        counts[name] = int(count)
    return counts


def named_files(text: str) -> dict[str, Path]:
    """Parse NAME=FILE, or list a folder's `*.jsonl` files by name; raises `EvaluationError`."""
    if Path(text).is_dir():
        return {file.stem: file for file in sorted(Path(text).glob("*.jsonl"))}
    name, equals, file = text.partition("=")
    # The name becomes part of file names, and of keys in results.json.
    if not equals or not name.replace("_", "").isalnum() or not file:
        raise EvaluationError(f"--task {text}: expected NAME=FILE, NAME of letters, digits, _; or a folder")
    return {name: Path(file)}


def dataset(
    benchmark_set: str,
    shots: int = 0,
    benchmarks: str | None = None,
    items_per_set: int | None = None,
    **_: object,  # lm-eval also passes the other metadata, all model arguments included
) -> "dict[str, Dataset]":
    """Load a benchmark set as lm-eval's `custom_dataset`, each item with its prompt.

    `benchmarks` (from `--metadata`) or MATHCPT_BENCHMARKS is the folder of benchmark sets, or `samples` for
    the small ones of this package. Raises `EvaluationError` when a file is missing or malformed.
    """
    root = benchmarks or os.environ.get("MATHCPT_BENCHMARKS")
    if not root:
        raise EvaluationError("MATHCPT_BENCHMARKS is not set: name a folder of benchmark sets, or `samples`")
    from datasets import Dataset

    path = benchmark.choose_sets(root, benchmark_set)[benchmark_set]
    items = spread(load_items(path).items, items_per_set)
    texts = zip(items, prompts(items, path, shots), strict=True)
    return {"test": Dataset.from_list([item.model_dump() | {"prompt": text} for item, text in texts])}


def prompts(items: tuple[Item, ...], path: Path, shots: int) -> list[str]:
    """The prompt of each item of the file `path`: `shots` worked examples in its language, the question."""
    prefixes = {
        language: "".join(cpt_text(example) + _SEPARATOR for example in examples)
        for language, examples in benchmark.examples_for(items, path, shots).items()
    }
    return [prefixes[item.lang] + item.prompt() for item in items]


def gold_text(item: Item) -> str:
    """What a model should write after an item's prompt: the gold solution, or the answer's sentence alone."""
    text = response_text(item.solution or "", item.answer, item.lang)
    return text if item.solution else text.replace("\n", "", 1)


def score(doc: Mapping[str, object], outputs: list[str | list[str]]) -> dict[str, float]:
    """lm-eval's `process_results`: the shares of an item's outputs that are correct and ungraded."""
    # One request per item; its result is a list where a filter keeps several repeats.
    texts = outputs[0] if isinstance(outputs[0], list) else [outputs[0]]
    verdicts = [grade_output(Item.model_validate(doc), text)["verdict"] for text in texts]
    correct, ungraded = (verdicts.count(status) / len(verdicts) for status in ("correct", "ungraded"))
    return {"accuracy": correct, "ungraded": ungraded}


def grade_output(item: Item, output: str) -> JsonObject:
    """Extract the answer from an output, after its thinking part, and compare it with the item's."""
    shown = split_thinking(output)[1]
    extraction = extract_answer(shown, item.lang, item.type)
    verdict = grade(item.answer, extraction.text, item.type)
    # A choice may be answered with the text of the correct option instead of its letter; where the extraction
    # found neither a box nor an answer phrase, it is a bare letter anyway.
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
        "false_equations": len(false_equations(shown)),
    }


def summarize(name: str, file: ItemFile, rows: list[Sample], cut: int, config: EvaluationConfig) -> TaskScore:
    """Score one task from its samples, in the items' order; `cut` of its prompts were truncated."""
    # The errors below assume independent samples, and draws of one item are not: only the first one counts.
    first = [row for row in rows if not row.sample]
    correct = sum(row.correct for row in first)
    items = spread(file.items, config.limits.get(name))
    scored = [(row.gold_bits, row) for row in first if row.gold_bits is not None]
    tokens = [row.tokens for row in first if row.tokens is not None]
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
        truncated_prompts=cut,
        samples=_score_draws(items, rows, config.samples) if config.samples > 1 else None,
        bits_per_byte=_mean([bits / (row.gold_bytes or 1) for bits, row in scored]),
        mean_tokens=fmean(tokens) if tokens else None,
        mean_thinking_tokens=fmean(row.thinking_tokens or 0 for row in first) if tokens else None,
        cut_outputs=sum(bool(row.cut) for row in first) if tokens else None,
        right_with_false_equation=sum(row.correct and bool(row.false_equations) for row in first),
    )


def _mean(values: Sequence[float]) -> SampleScore | None:
    """Mean over items with its standard error, NaN for one item; None of none."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return SampleScore(value=fmean(values), stderr=error) if values else None


def _score_draws(items: Sequence[Item], samples: list[Sample], draws: int) -> dict[str, SampleScore]:
    by_item = [samples[start : start + draws] for start in range(0, len(samples), draws)]
    majority_correct = []
    for item, rows in zip(items, by_item, strict=True):
        answer = majority([row.extracted or "" for row in rows], item.type)
        majority_correct.append(bool(answer) and any(row.correct for row in rows if row.extracted == answer))
    scores = score_samples([[row.correct for row in rows] for rows in by_item], majority_correct)
    return {name: SampleScore(value=value, stderr=error) for name, (value, error) in scores.items()}


def majority(answers: Sequence[str], kind: str) -> str:
    """The most frequent answer, counting equal ones together; the first of a tie, '' if there is none."""
    counts: Counter[str] = Counter()  # keyed by the first of equal answers
    for answer in filter(None, answers):
        same = (first for first in counts if first == answer or grade(first, answer, kind).equal)
        counts[next(same, answer)] += 1
    return max(counts, key=counts.__getitem__, default="")


def aggregates(tasks: dict[str, TaskScore]) -> dict[str, JsonValue]:
    """The study's aggregates: `higher_of_forms` of tasks scored in both forms, `mean_of_four` sets."""
    # The higher of two noisy scores is biased upwards: the results contain both forms as well.
    best = dict(tasks)
    higher: dict[str, JsonValue] = {}
    for name, zero in tasks.items():
        if few := tasks.get(name + FEW_SHOT):
            form, found = (name + FEW_SHOT, few) if few.accuracy > zero.accuracy else (name, zero)
            higher[name] = {"form": form, "accuracy": found.accuracy, "stderr": found.stderr, "n": found.n}
            best[name] = found
    known = [score for name in STUDY_SETS if (score := best.get(name) or tasks.get(name + FEW_SHOT))]
    result: dict[str, JsonValue] = {"higher_of_forms": higher} if higher else {}
    if len(known) == len(STUDY_SETS):
        # Sets have equal weight, whatever their size, as in the study; their errors are independent.
        result["mean_of_four"] = {
            "accuracy": sum(score.accuracy for score in known) / len(known),
            "stderr": math.sqrt(sum(score.stderr**2 for score in known)) / len(known),
        }
    return result
