"""What a Hugging Face folder holds beside its weights; no torch."""

import json
import shutil
from pathlib import Path

from megatron_mathcpt.errors import CheckpointError, ConfigError
from megatron_mathcpt.manifest import hash_file, hash_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


def hf_fingerprint(folder: Path) -> str:
    """Identity of foreign weights: the config's hash and the sizes of the weight files."""
    weights = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise ConfigError(f"{folder}: holds no *.safetensors; other weight formats are not read")
    return hash_json({"config": hash_file(folder / "config.json"), "weights": weights})


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
