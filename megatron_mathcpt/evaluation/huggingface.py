"""A Hugging Face folder as an lm-eval model: checked by name, fingerprinted, loaded."""

import json
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.files import hash_file, hash_json
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest

KIND = "hf"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of what decides a model folder's answers: its manifest's fingerprint, or all its files.

    Raises `EvaluationError` or `ManifestError` when the folder is not a whole Hugging Face model.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise EvaluationError(
            f"{folder}: no config.json here; give a Hugging Face model folder, as tools/convert.py makes it"
        )
    if (folder / FILE_NAME).is_file():
        return load_manifest(folder, KIND).fingerprint()
    _check_parts(folder)
    files = sorted(
        path for pattern in ("*.json", "*.safetensors", "*.model") for path in folder.glob(pattern)
    )
    return hash_json({path.name: hash_file(path) for path in files})


def load_hf(folder: Path, batch_size: int, params_dtype: str) -> Any:
    """lm-eval's `hf` model on a GPU if there is one; `auto` is the folder's own precision there, else fp32.

    Raises `EvaluationError` when the folder cannot be loaded.
    """
    from lm_eval.models.huggingface import HFLM

    from megatron_mathcpt.device import on_gpu

    cuda = on_gpu()
    try:
        return HFLM(
            pretrained=str(folder),
            device="cuda" if cuda else "cpu",
            dtype=_DTYPES.get(params_dtype, "auto" if cuda else "float32"),
            batch_size=batch_size,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvaluationError(f"{folder}: cannot be loaded as a model: {error}") from error


def _check_parts(folder: Path) -> None:
    """A sharded model's index names its files; a copy that was cut short lacks some."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise EvaluationError(f"{folder / missing[0]}: missing, the model folder is not complete")
