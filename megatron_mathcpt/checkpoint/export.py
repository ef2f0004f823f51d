"""A checkpoint as a Hugging Face folder, proven by the logits of both models."""

from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.checkpoint.folder import load_sealed, newest_checkpoint
from megatron_mathcpt.config.llama import LlamaShape
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.manifest import Manifest, is_complete, load_manifest, verify_hashes, write_manifest

LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Exported:
    """Outcome of an export: the largest absolute difference of logits, and whether it was done just now."""

    max_abs_logit_difference: float
    was_there: bool


def export_to_hf(run: Path, out: Path, tokenizer: Path | None = None) -> Exported:
    """Convert the newest checkpoint of `run` (or one checkpoint) into the Hugging Face folder `out`.

    The tokenizer comes from the corpus the run was trained on unless a folder is given. Raises
    `CheckpointError` if the two models' logits differ by more than rounding. Imports torch only if there
    is work to do.
    """
    checkpoint = newest_checkpoint(run)
    manifest = load_sealed(checkpoint)
    inputs = {"checkpoint": manifest.fingerprint()}
    config = {"model": manifest.config["model"]}
    if is_complete(out, "hf", inputs=inputs, config=config):
        counts = load_manifest(out, "hf").counts
        return Exported(counts["max_abs_logit_difference"], was_there=True)
    verify_hashes(checkpoint, manifest)
    difference = _convert(checkpoint, manifest, out, tokenizer or _corpus_tokenizer(manifest))
    counts = {"max_abs_logit_difference": difference, "step": manifest.counts["step"]}
    write_manifest(out, "hf", inputs=inputs, counts=counts, config=config)
    return Exported(difference, was_there=False)


def _corpus_tokenizer(manifest: Manifest) -> Path:
    return Path(manifest.config["data"]["corpus"]) / "tokenizer"


def _convert(checkpoint: Path, manifest: Manifest, out: Path, tokenizer: Path) -> float:
    from megatron_mathcpt.checkpoint.compare import max_abs_logit_difference
    from megatron_mathcpt.checkpoint.huggingface import copy_tokenizer, write_hf_folder
    from megatron_mathcpt.checkpoint.reader import CheckpointWeights

    shape = LlamaShape.model_validate(manifest.config["model"])
    source = CheckpointWeights(checkpoint, shape)
    write_hf_folder(source, shape, out, eos_id=manifest.counts["eos_id"])
    copy_tokenizer(tokenizer, out)
    difference, dtype = max_abs_logit_difference(source, shape, out)
    if not difference <= LOGIT_TOLERANCE[dtype]:
        raise CheckpointError(
            f"{out}: logits differ from Megatron-Core's by {difference:.2e}, "
            f"more than {LOGIT_TOLERANCE[dtype]:.0e}; this folder must not be used"
        )
    return difference
