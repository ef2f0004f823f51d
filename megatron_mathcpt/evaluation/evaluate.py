"""Score one model on some task files into a complete folder: samples, results, manifest."""

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_mathcpt.checkpoint.convert import hf_fingerprint
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.tasks import STOP, aggregates, judge, prompts, summarize
from megatron_mathcpt.formats.benchmark import ItemFile, load_items, spread
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
    samples, truncated = _answer(model, identity, sets, config, out)
    scores = {
        name: summarize(name, file, samples[name], truncated[name], config) for name, file in sets.items()
    }
    results = Results(
        model=model_name(model), model_fingerprint=identity, tasks=scores, aggregates=aggregates(scores)
    )
    if is_first_process():
        write_evaluation(out, results, samples, inputs=inputs, config=recorded)
    return results.as_json()


def _answer(
    model: Path, identity: str, sets: dict[str, ItemFile], config: EvaluationConfig, out: Path
) -> tuple[dict[str, list[Sample]], Counter[str]]:
    """Every answer by task, and how many prompts were cut for leaving no room for the longest answer."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars of milliseconds; ours shows the answers
    from megatron_mathcpt.evaluation.responses import Question, answer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    questions = []  # put together, and so checked, before the model is loaded
    for name, file in sets.items():
        items = spread(file.items, config.limits.get(name))
        for item, text in zip(items, prompts(items, file.path, config.shots.get(name, 0)), strict=True):
            questions += [Question(name, item, text)] * config.samples
    lm = load(model, config)
    # What decides an answer beside its prompt and generation settings.
    decisive = {
        "model": identity,
        "backend": config.backend,
        "precision": str(getattr(lm, "params_dtype", None) or lm.model.dtype),
        "device": str(lm.device),
        "seed": config.seed,
    }
    settings = {"until": STOP, **config.generation()}
    try:
        texts = answer(
            lm, questions, settings, out / RESPONSES, identity=decisive, batch_size=config.batch_size
        )
    finally:
        if config.backend == "megatron":
            lm.close()
    room = lm.max_length - config.max_new_tokens
    each = questions[:: config.samples]
    truncated = Counter(asked.task for asked in each if len(lm.tok_encode(asked.prompt)) > room)
    samples: dict[str, list[Sample]] = {name: [] for name in sets}
    for index, ((task, item, _), output) in enumerate(zip(questions, texts, strict=True)):
        samples[task].append(
            Sample(
                id=item.id,
                sample=index % config.samples if config.samples > 1 else None,
                **judge(item, output),
                stage=item.stage,
                steps=item.steps,
                gold=item.answer,
                question=item.question,
                output=output,
            )
        )
    return samples, truncated


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
    index, names = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.is_file():  # of a sharded model; a copy that was cut short lacks some of its files
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise EvaluationError(f"{folder / missing[0]}: missing, the model folder is not complete")
    # Beside the weights, what decides prompts and their tokens.
    small = sorted(path for pattern in ("*.json", "*.model") for path in folder.glob(pattern))
    return hash_json({"weights": hf_fingerprint(folder)} | {path.name: hash_file(path) for path in small})


def load(folder: Path, config: EvaluationConfig) -> Any:
    """lm-eval's model object; raises `EvaluationError` when the window leaves no room for a question."""
    model: Any = _load_megatron(folder, config) if config.backend == "megatron" else _load_hf(folder, config)
    if model.max_length <= config.max_new_tokens:
        raise EvaluationError(
            f"max_new_tokens {config.max_new_tokens}: the model's window is {model.max_length} tokens, "
            "which leaves no room for a question; ask for fewer"
        )
    return model


def _load_megatron(folder: Path, config: EvaluationConfig) -> Any:
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.evaluation.megatron_lm import MegatronLM, MegatronOptions

    return MegatronLM(str(folder), **config.model_dump(include=set(MegatronOptions.model_fields)))


def _load_hf(folder: Path, config: EvaluationConfig) -> Any:
    """lm-eval's `hf` model, on a GPU if there is one; there `auto` is the folder's precision, else fp32."""
    from lm_eval.models.huggingface import HFLM

    from megatron_mathcpt.device import on_gpu

    device, automatic = ("cuda", "auto") if on_gpu() else ("cpu", "float32")
    dtype = _DTYPES.get(config.params_dtype, automatic)
    try:
        return HFLM(pretrained=str(folder), device=device, dtype=dtype, batch_size=config.batch_size)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvaluationError(f"{folder}: cannot be loaded as a model: {error}") from error
