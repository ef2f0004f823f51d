"""Score one model on some task files into a complete folder: samples, results, manifest."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_mathcpt.checkpoint.convert import hf_fingerprint
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.tasks import aggregates, build_tasks, judge, summarize
from megatron_mathcpt.formats.benchmark import Item, ItemFile, load_items, spread
from megatron_mathcpt.formats.evaluation_folder import (
    KIND,
    RESPONSES,
    Results,
    Sample,
    load_results,
    write_evaluation,
)
from megatron_mathcpt.formats.files import hash_file, hash_json
from megatron_mathcpt.formats.manifest import FILE_NAME, is_complete, load_manifest
from megatron_mathcpt.formats.run_folder import chosen_checkpoint, load_sealed
from megatron_mathcpt.log import get_logger, is_first_process

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
logger = get_logger(__name__)


def evaluate(model: Path, files: dict[str, Path], config: EvaluationConfig, out: Path) -> dict[str, Any]:
    """Score the model folder `model` on `files` (task name to benchmark file); what `results.json` holds.

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
        return load_results(out).as_json()
    answers = _answer(model, identity, sets, config, out)
    scores = {name: summarize(name, sets[name], *found, config) for name, found in answers.items()}
    results = Results(
        model=model_name(model), model_fingerprint=identity, tasks=scores, aggregates=aggregates(scores)
    )
    if is_first_process():
        samples = {name: rows for name, (rows, _) in answers.items()}
        write_evaluation(out, results, samples, inputs=inputs, config=recorded)
    return results.as_json()


def _answer(
    model: Path, identity: str, sets: dict[str, ItemFile], config: EvaluationConfig, out: Path
) -> dict[str, tuple[list[Sample], int]]:
    """Every answer by task, and how many prompts were cut for leaving no room for the longest answer."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars of milliseconds; ours shows the answers
    from lm_eval.evaluator import evaluate as lm_evaluate

    from megatron_mathcpt.evaluation.responses import RecordedLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    built = build_tasks(sets, config)  # its data is checked before the model is loaded
    lm = load(model, config)
    # What decides an answer beside its prompt and generation settings.
    decisive = {
        "model": identity,
        "backend": config.backend,
        "precision": str(getattr(lm, "params_dtype", None) or lm.model.dtype),
        "device": str(lm.device),
        "seed": config.seed,
    }
    try:
        recorder = RecordedLM(lm, out / RESPONSES, decisive, config.batch_size)
        found = lm_evaluate(recorder, built, bootstrap_iters=0)["samples"]
        return {
            name: _judged(spread(sets[name].items, config.limits.get(name)), samples, lm, config)
            for name, samples in found.items()
        }
    finally:
        if config.backend == "megatron":
            lm.close()


def _judged(
    items: Sequence[Item], samples: list[dict[str, Any]], lm: Any, config: EvaluationConfig
) -> tuple[list[Sample], int]:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    room = lm.max_length - config.max_new_tokens
    truncated = sum(len(lm.tok_encode(sample["arguments"][0][0])) > room for sample in ordered)
    rows = [
        Sample(
            id=item.id,
            sample=number if config.samples > 1 else None,
            **judge(item, output),
            stage=item.stage,
            steps=item.steps,
            gold=item.answer,
            question=item.question,
            output=output,
        )
        for item, sample in zip(items, ordered, strict=True)
        for number, output in enumerate(sample["resps"][0])
    ]
    return rows, truncated


def model_name(folder: Path) -> str:
    """What a reader calls the model: the run of `<run>/hf` or of a checkpoint, else the folder itself."""
    whole = folder.resolve()
    if whole.name.startswith("step_"):
        return f"{whole.parent.parent.name}/{whole.name}"
    return whole.parent.name if whole.name == "hf" else whole.name


def fingerprint(folder: Path, config: EvaluationConfig) -> str:
    """SHA-256 of what decides the answers of a checkpoint or Hugging Face folder, before it is loaded.

    Raises `EvaluationError`, `CheckpointError` or `ManifestError` when the folder is not whole.
    """
    if not (folder / "config.json").is_file():
        if config.backend == "megatron":
            return load_sealed(chosen_checkpoint(folder)).fingerprint()
        raise EvaluationError(
            f"{folder}: no config.json here; give a Hugging Face model folder, as `mathcpt convert` makes it"
        )
    if (folder / FILE_NAME).is_file():
        return load_manifest(folder, "hf").fingerprint()
    _check_parts(folder)
    # Beside the weights, what decides prompts and their tokens.
    small = sorted(path for pattern in ("*.json", "*.model") for path in folder.glob(pattern))
    return hash_json({"weights": hf_fingerprint(folder)} | {path.name: hash_file(path) for path in small})


def _check_parts(folder: Path) -> None:
    """A sharded model's index names its files; a copy that was cut short lacks some."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise EvaluationError(f"{folder / missing[0]}: missing, the model folder is not complete")


def load(folder: Path, config: EvaluationConfig) -> Any:
    """lm-eval's model object; raises `EvaluationError` when the window leaves no room for a question."""
    if config.backend == "megatron":
        from megatron_mathcpt.cpu import use_cpu

        use_cpu()  # before the first import of Megatron-Core
        from megatron_mathcpt.evaluation.megatron_lm import MegatronLM, MegatronOptions

        model: Any = MegatronLM(str(folder), **config.model_dump(include=set(MegatronOptions.model_fields)))
    else:
        model = _load_hf(folder, config)
    if model.max_length <= config.max_new_tokens:
        raise EvaluationError(
            f"max_new_tokens {config.max_new_tokens}: the model's window is {model.max_length} tokens, "
            "which leaves no room for a question; ask for fewer"
        )
    return model


def _load_hf(folder: Path, config: EvaluationConfig) -> Any:
    """lm-eval's `hf` model, on a GPU if there is one; there `auto` is the folder's precision, else fp32."""
    from lm_eval.models.huggingface import HFLM

    from megatron_mathcpt.device import on_gpu

    cuda = on_gpu()
    try:
        return HFLM(
            pretrained=str(folder),
            device="cuda" if cuda else "cpu",
            dtype=_DTYPES.get(config.params_dtype, "auto" if cuda else "float32"),
            batch_size=config.batch_size,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvaluationError(f"{folder}: cannot be loaded as a model: {error}") from error
