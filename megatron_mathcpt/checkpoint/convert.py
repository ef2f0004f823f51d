"""Checkpoint to Hugging Face folder and back, proven by the logits of both models."""

import shutil
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mathcpt.checkpoint.hf_folder import copy_tokenizer, hf_fingerprint, own_tokenizer, read_eos_id
from megatron_mathcpt.config.shape import LlamaShape, read_hf_shape
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.manifest import (
    OutputFile,
    is_complete,
    load_manifest,
    sync_and_describe,
    verify_hashes,
    write_manifest,
)
from megatron_mathcpt.formats.run_folder import chosen_checkpoint, hidden_path, load_sealed, seal

if TYPE_CHECKING:
    from megatron_mathcpt.model.weights import WeightSource

# Both models compute in fp32 from the same stored weights, whatever their type.
LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-4, "float16": 1e-4}


@dataclass(frozen=True)
class Converted:
    """Outcome of a conversion: the largest absolute difference of a logit, None if that was not asked for."""

    max_abs_logit_difference: float | None
    was_there: bool


def export_to_hf(run: Path, out: Path, tokenizer: Path | None = None, *, verify: bool = True) -> Converted:
    """Convert the chosen checkpoint of `run` (or one checkpoint) into the Hugging Face folder `out`.

    The tokenizer is the checkpoint's own or that of the corpus the run was trained on, unless a folder is
    given. Raises `CheckpointError` if the two models' logits differ by more than rounding. Imports torch
    only if there is work to do.
    """
    checkpoint = chosen_checkpoint(run)
    manifest = load_sealed(checkpoint)
    inputs = {"checkpoint": manifest.fingerprint()}
    config = {"model": manifest.config["model"]}
    if is_complete(out, "hf", inputs=inputs, config=config):
        counts = load_manifest(out, "hf").counts
        return Converted(counts["max_abs_logit_difference"], was_there=True)
    verify_hashes(checkpoint, manifest)
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.huggingface import write_hf_folder
    from megatron_mathcpt.checkpoint.reader import CheckpointWeights

    shape = LlamaShape.model_validate(manifest.config["model"])
    source = CheckpointWeights(checkpoint, shape)
    weights = write_hf_folder(source, shape, out, eos_id=manifest.counts["eos_id"])
    copy_tokenizer(tokenizer or own_tokenizer(checkpoint, manifest), out)
    difference = _compare(source, shape, out) if verify else None
    counts = {"max_abs_logit_difference": difference, "step": manifest.counts["step"]}
    outputs = weights | _described(out, weights)
    write_manifest(out, "hf", inputs=inputs, counts=counts, config=config, outputs=outputs)
    return Converted(difference, was_there=False)


def import_from_hf(folder: Path, out: Path, *, verify: bool = True) -> Converted:
    """Convert the Hugging Face folder `folder` into the checkpoint `out`, for any layout.

    Weights keep their type; the tokenizer goes along. Raises `ConfigError` or `CheckpointError` naming
    what is missing or no plain Llama.
    """
    shape = read_hf_shape(folder)
    inputs = {"hf": hf_fingerprint(folder)}
    config = {"model": shape.model_dump(mode="json")}
    if is_complete(out, "checkpoint", inputs=inputs, config=config):
        counts = load_sealed(out).counts
        return Converted(counts["max_abs_logit_difference"], was_there=True)
    if out.exists():
        raise CheckpointError(f"{out}: is there and is no checkpoint; choose another folder")
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights
    from megatron_mathcpt.checkpoint.importer import write_weights
    from megatron_mathcpt.checkpoint.reader import CheckpointWeights

    writing = hidden_path(out)
    shutil.rmtree(writing, ignore_errors=True)
    (writing / "tokenizer").mkdir(parents=True)
    copy_tokenizer(folder, writing / "tokenizer")
    write_weights(HuggingFaceWeights(folder, shape), shape, writing)
    difference = _compare(CheckpointWeights(writing, shape), shape, folder) if verify else None
    outputs = _described(writing)
    counts = {"max_abs_logit_difference": difference, "step": 0, "eos_id": read_eos_id(folder)}
    write_manifest(writing, "checkpoint", inputs=inputs, counts=counts, config=config, outputs=outputs)
    seal(writing)
    writing.rename(out)
    return Converted(difference, was_there=False)


def _described(folder: Path, known: Container[str] = ()) -> dict[str, OutputFile]:
    """Every file but `known` of a folder without manifest, hidden ones too, synced and described."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sync_and_describe(folder, (name for name in names if name not in known))


def _compare(source: "WeightSource", shape: LlamaShape, folder: Path) -> float:
    """Largest difference of a logit; `CheckpointError` if it is more than rounding."""
    from megatron_mathcpt.checkpoint.compare import max_abs_logit_difference

    difference, dtype = max_abs_logit_difference(source, shape, folder)
    if not difference <= LOGIT_TOLERANCE[dtype]:
        raise CheckpointError(
            f"{folder}: its logits and Megatron-Core's differ by {difference:.2e}, "
            f"more than {LOGIT_TOLERANCE[dtype]:.0e}; the conversion must not be used"
        )
    return difference
