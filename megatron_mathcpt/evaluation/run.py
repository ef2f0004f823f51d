"""Score one model on some task files into a complete folder: samples, results, manifest."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.huggingface import KIND as HF_KIND
from megatron_mathcpt.evaluation.huggingface import load_model, model_fingerprint
from megatron_mathcpt.evaluation.items import Item, ItemFile, load_items, spread
from megatron_mathcpt.evaluation.judge import judge
from megatron_mathcpt.evaluation.tasks import build_tasks
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.manifest import is_complete, write_atomically, write_manifest
from megatron_mathcpt.statistics import accuracy_standard_error, wilson_interval

KIND = "evaluation"
logger = get_logger(__name__)


def evaluate(model: Path, files: dict[str, Path], config: EvaluationConfig, out: Path) -> dict[str, Any]:
    """Score the Hugging Face folder `model` on `files` (task name to benchmark file); the results.

    Writes `samples_<task>.jsonl`, `results.json` and the manifest, and nothing when `out` already holds
    this result. Raises `EvaluationError` for inputs that cannot be used, before the model is loaded.
    """
    unknown = sorted(set(config.tasks) ^ set(files))
    if unknown:
        raise EvaluationError(f"task '{unknown[0]}': named without a file, or a file without a task")
    sets = {name: load_items(files[name]) for name in config.tasks}
    fingerprint = model_fingerprint(model)
    inputs = {"model": fingerprint, **{f"task:{name}": found.sha256 for name, found in sets.items()}}
    recorded = config.model_dump(mode="json")
    if is_complete(out, KIND, inputs=inputs, config=recorded):
        logger.info("%s: already complete", out)
        return dict(json.loads((out / "results.json").read_bytes()))
    chosen = {name: spread(found.items, config.limits.get(name)) for name, found in sets.items()}
    outputs, truncated = _generate(model, chosen, config)
    tasks: dict[str, Any] = {}
    for name, items in chosen.items():
        rows = [_row(item, output) for item, output in zip(items, outputs[name], strict=True)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(out / f"samples_{name}.jsonl", lines.encode())
        tasks[name] = _summary(sets[name], items, rows) | {"truncated_prompts": truncated[name]}
    results = {"model": _name(model), "model_fingerprint": fingerprint, "tasks": tasks}
    write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False).encode())
    scores = {name: task["accuracy"] for name, task in tasks.items()}
    write_manifest(out, KIND, inputs=inputs, counts={"accuracy": scores}, config=recorded)
    return results


def _generate(
    model: Path, items: dict[str, tuple[Item, ...]], config: EvaluationConfig
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Outputs of each task in the order of its items, and how many prompts did not fit the window."""
    from lm_eval.evaluator import evaluate as lm_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    lm = load_model(model, config.batch_size, config.max_new_tokens)
    room = lm.max_length - config.max_new_tokens
    truncated = {
        name: sum(len(lm.tok_encode(item.prompt())) > room for item in rows) for name, rows in items.items()
    }
    found = lm_evaluate(lm, build_tasks(items, config.max_new_tokens), bootstrap_iters=0)
    return {
        name: [sample["resps"][0][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for name, samples in found["samples"].items()
    }, truncated


def _name(model: Path) -> str:
    """What a reader calls the model: a run's folder for `<run>/hf`, else the folder itself."""
    folder = model.resolve()
    return folder.parent.name if folder.name == HF_KIND else folder.name


def _row(item: Item, output: str) -> dict[str, Any]:
    outcome = judge(item, output)
    return {
        "id": item.id,
        "correct": outcome.verdict.equal is True,
        "verdict": outcome.verdict.status,
        "reason": outcome.verdict.reason,
        "extracted": outcome.extraction.text,
        "method": outcome.extraction.method,
        "gold": item.answer,
        "question": item.question,
        "output": output,
    }


def _summary(found: ItemFile, items: tuple[Item, ...], rows: list[dict[str, Any]]) -> dict[str, Any]:
    correct = sum(row["correct"] for row in rows)
    low, high = wilson_interval(correct, len(rows))
    languages = sorted({item.lang for item in items})
    return {
        "n": len(rows),
        "items_in_file": len(found.items),
        "correct": correct,
        "ungraded": sum(row["verdict"] == "ungraded" for row in rows),
        "accuracy": correct / len(rows),
        "stderr": accuracy_standard_error(correct, len(rows)),
        "wilson_95": [low, high],
        "methods": dict(sorted(Counter(row["method"] for row in rows).items())),
        "language": "+".join(languages),
        "data_sha256": found.sha256,
    }
