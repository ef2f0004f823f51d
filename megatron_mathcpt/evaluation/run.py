"""Score one model on some task files into a complete folder: samples, results, manifest."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.aggregate import aggregates
from megatron_mathcpt.evaluation.judge import Outcome, judge
from megatron_mathcpt.evaluation.model import fingerprint, load, model_name, precision, writes
from megatron_mathcpt.evaluation.samples import majority, sample_scores
from megatron_mathcpt.formats.benchmark import Item, ItemFile, load_items, spread
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import is_complete, write_manifest
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.statistics import accuracy_standard_error, wilson_interval

KIND = "evaluation"
RESPONSES = "responses.jsonl"
logger = get_logger(__name__)


@dataclass(frozen=True)
class Task:
    """One named task: its file, the items that are scored, their answers and outcomes, [items][samples]."""

    name: str
    file: ItemFile
    items: tuple[Item, ...]
    outputs: list[list[str]]
    judged: list[list[Outcome]]
    truncated: int


def evaluate(model: Path, files: dict[str, Path], config: EvaluationConfig, out: Path) -> dict[str, Any]:
    """Score the model folder `model` on `files` (task name to benchmark file); the results.

    Writes `responses.jsonl` as the answers come, then `samples_<task>.jsonl`, `results.json` and the
    manifest, and nothing when `out` already holds this result; a run that was killed goes on with the answers
    it has. Raises `EvaluationError` for inputs that cannot be used, before the model is loaded.
    """
    unknown = sorted(set(config.tasks) ^ set(files))
    if unknown:
        raise EvaluationError(f"task '{unknown[0]}': named without a file, or a file without a task")
    sets = {name: load_items(files[name]) for name in config.tasks}
    identity = fingerprint(model, config)
    inputs = {"model": identity, **{f"task:{name}": found.sha256 for name, found in sets.items()}}
    recorded = config.model_dump(mode="json")
    if is_complete(out, KIND, inputs=inputs, config=recorded):
        logger.info("%s: already complete", out)
        return dict(json.loads((out / "results.json").read_bytes()))
    tasks = _generate(model, identity, sets, files, config, out)
    summaries = {task.name: _summary(task, config) for task in tasks}
    results = {
        "model": model_name(model),
        "model_fingerprint": identity,
        "tasks": summaries,
        "aggregates": aggregates(summaries),
    }
    if writes():
        _write(out, tasks, results)
        scores = {name: summary["accuracy"] for name, summary in summaries.items()}
        write_manifest(out, KIND, inputs=inputs, counts={"accuracy": scores}, config=recorded)
    return results


def _generate(
    model: Path,
    identity: str,
    sets: dict[str, ItemFile],
    files: dict[str, Path],
    config: EvaluationConfig,
    out: Path,
) -> list[Task]:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars of milliseconds; ours shows the answers
    from lm_eval.evaluator import evaluate as lm_evaluate

    from megatron_mathcpt.evaluation.build import build_tasks
    from megatron_mathcpt.evaluation.responses import RecordedLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    items = {name: spread(found.items, config.limits.get(name)) for name, found in sets.items()}
    built = build_tasks(items, files, config)  # its data is checked before the model is loaded
    lm = load(model, config)
    try:
        settings = _settings(lm, identity, config)
        recorder = RecordedLM(lm, out / RESPONSES, settings, batch=config.batch_size, describe=_describe)
        found = lm_evaluate(recorder, built, bootstrap_iters=0)["samples"]
        room = lm.max_length - config.max_new_tokens
        return [
            _task(name, sets[name], items[name], samples, lambda text: len(lm.tok_encode(text)) > room)
            for name, samples in found.items()
        ]
    finally:
        if config.backend == "megatron":
            lm.close()


def _settings(lm: Any, identity: str, config: EvaluationConfig) -> dict[str, Any]:
    """What decides an answer beside its prompt and generation settings."""
    return {
        "model": identity,
        "backend": config.backend,
        "precision": precision(lm),
        "device": str(lm.device),
        "seed": config.seed,
    }


def _describe(request: Any, output: str) -> dict[str, Any]:
    """What a line of the answers says beside prompt and text; `request` is lm-eval's."""
    item = Item.model_validate(request.doc)
    return {"task": request.task_name, "id": item.id, **_verdict(judge(item, output))}


def _verdict(outcome: Outcome) -> dict[str, Any]:
    return {
        "correct": outcome.verdict.equal is True,
        "verdict": outcome.verdict.status,
        "reason": outcome.verdict.reason,
        "extracted": outcome.extraction.text,
        "method": outcome.extraction.method,
    }


def _task(
    name: str,
    file: ItemFile,
    items: tuple[Item, ...],
    samples: list[dict[str, Any]],
    is_cut: Callable[[str], bool],
) -> Task:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    truncated = sum(is_cut(sample["arguments"][0][0]) for sample in ordered)
    outputs = [list(sample["resps"][0]) for sample in ordered]
    judged = [[judge(item, text) for text in texts] for item, texts in zip(items, outputs, strict=True)]
    return Task(name, file, items, outputs, judged, truncated)


def _write(out: Path, tasks: list[Task], results: dict[str, Any]) -> None:
    for task in tasks:
        rows = [
            row
            for item, outputs, outcomes in zip(task.items, task.outputs, task.judged, strict=True)
            for row in _rows(item, outputs, outcomes)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(out / f"samples_{task.name}.jsonl", lines.encode())
    write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False).encode())


def _rows(item: Item, outputs: list[str], outcomes: list[Outcome]) -> list[dict[str, Any]]:
    known = {name: getattr(item, name) for name in ("stage", "steps") if getattr(item, name) is not None}
    return [
        {
            "id": item.id,
            **({"sample": number} if len(outputs) > 1 else {}),
            **_verdict(outcome),
            **known,
            "gold": item.answer,
            "question": item.question,
            "output": output,
        }
        for number, (output, outcome) in enumerate(zip(outputs, outcomes, strict=True))
    ]


def _summary(task: Task, config: EvaluationConfig) -> dict[str, Any]:
    """Scores of one task; `correct` and its error are of the first sample when there are several."""
    first = [outcomes[0] for outcomes in task.judged]
    correct = sum(outcome.verdict.equal is True for outcome in first)
    low, high = wilson_interval(correct, len(first))
    found = {
        "n": len(first),
        "items_in_file": len(task.file.items),
        "shots": config.shots.get(task.name, 0),
        "correct": correct,
        "ungraded": sum(outcome.verdict.equal is None for outcome in first),
        "accuracy": correct / len(first),
        "stderr": accuracy_standard_error(correct, len(first)),
        "wilson_95": [low, high],
        "methods": dict(sorted(Counter(outcome.extraction.method for outcome in first).items())),
        "language": "+".join(sorted({item.lang for item in task.items})),
        "data_sha256": task.file.sha256,
        "truncated_prompts": task.truncated,
    }
    return found | ({"samples": _sample_scores(task)} if config.samples > 1 else {})


def _sample_scores(task: Task) -> dict[str, Any]:
    voted = []
    for item, outcomes in zip(task.items, task.judged, strict=True):
        answer = majority([outcome.extraction.text for outcome in outcomes], item.type)
        voted.append(
            any(o.verdict.equal is True for o in outcomes if o.extraction.text == answer) if answer else False
        )
    return sample_scores([[o.verdict.equal is True for o in outcomes] for outcomes in task.judged], voted)
