"""What a Hugging Face folder holds beside its weights; no torch."""

import hashlib
import json
import shutil
from pathlib import Path

from megatron_mathcpt.errors import CheckpointError, ConfigError
from megatron_mathcpt.formats.files import hash_file, hash_json
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.run_folder import load_sealed, newest_checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
_BLOCK, _BLOCKS = 2**16, 64


def hf_fingerprint(folder: Path) -> str:
    """Identity of foreign weights: the config's hash, and size and sampled content of the weight files.

    Other weights of the same shape differ everywhere, so a sample tells them apart without reading 140 GB
    at every start; that no bit is damaged is for the download's own checksum.
    """
    weights = {path.name: _sample_hash(path) for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise ConfigError(f"{folder}: holds no *.safetensors; other weight formats are not read")
    return hash_json({"config": hash_file(folder / "config.json"), "weights": weights})


def _sample_hash(path: Path) -> str:
    """SHA-256 of a file's size and of 64 blocks of 64 KiB spread over it; of all of it if it is small."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max(_BLOCK, -(-(size - _BLOCK) // (_BLOCKS - 1)))  # rounded up, so that the last block ends it
    with path.open("rb") as file:
        for begin in range(0, size, step):
            file.seek(begin)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def own_tokenizer(checkpoint: Path, manifest: Manifest) -> Path:
    """Folder of the tokenizer a checkpoint was trained with: its own, its corpus', or its starting weights'.

    Raises `CheckpointError` if the checkpoint tells of none.
    """
    data, init = manifest.config.get("data", {}), manifest.config.get("init", {})
    if (checkpoint / "tokenizer").is_dir():
        return checkpoint / "tokenizer"
    if data.get("corpus"):
        return Path(data["corpus"]) / "tokenizer"
    if init.get("hf"):
        return Path(init["hf"])
    if init.get("checkpoint"):
        start = newest_checkpoint(Path(init["checkpoint"]))
        return own_tokenizer(start, load_sealed(start))
    raise CheckpointError(f"{checkpoint}: tells of no tokenizer; give its folder with --tokenizer")


def read_eos_id(folder: Path) -> int | None:
    """The end-of-sequence token of `config.json`, the first if it lists several."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    first = found[0] if isinstance(found, list) else found
    return None if first is None else int(first)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files; `CheckpointError` if there are none."""
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise CheckpointError(f"{source}: no tokenizer there; give its folder with --tokenizer")
    for name in found:
        shutil.copyfile(source / name, folder / name)
