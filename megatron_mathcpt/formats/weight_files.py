"""Which weight files of a Hugging Face folder count, and what tensors they have, from their headers alone.

As transformers chooses them: `model.safetensors`, or else the files that its index names, whole. A folder of
which another reader would take other weights is refused.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError, first_of
from megatron_mathcpt.formats.files import read_small, refuse_pointer
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.log import get_logger, is_first_process

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "copy it again"
_NAME = re.compile(r"[^/\\\x00-\x1f]+\.safetensors")  # of a file in the folder itself
_READ = ("F32", "BF16", "F16")
_HEAD = "lm_head.weight"  # compared with tied embeddings where it is read
_MODEL = ("model.", "lm_head.")  # what the names of a decoder's own tensors begin with
_COMPUTED = ".rotary_emb.inv_freq"  # in old files; follows from config.json
_logger = get_logger(__name__)


class StoredTensor(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files that count, and the names of the tensors that an index places in each."""
    single, index, adapter = folder / WEIGHTS, folder / INDEX, folder / "adapter_config.json"
    if adapter.is_file():  # transformers adds it to the model if peft is installed
        raise ConfigError(f"{adapter}: adapters are not read; merge it into the model, then remove it")
    placed = _read_index(index) if index.is_file() else {}
    if not placed and not single.is_file():
        what = f"missing, as is its index, so {folder} has no *.safetensors that count"
        raise ConfigError(f"{single}: {what}; other weight formats are not read")
    names = {*placed.values()}
    if placed and single.is_file() and names != {WEIGHTS}:
        raise ConfigError(f"{single}: {INDEX} names other files; remove the one that does not count")
    if missing := sorted(name for name in names if not os.path.isfile(folder / name)):
        raise ConfigError(f"{folder / missing[0]}: missing, but {INDEX} names it; copy it too")
    found: dict[Path, set[str]] = {folder / name: set() for name in sorted(names or {WEIGHTS})}
    for tensor, name in placed.items():
        found[folder / name].add(tensor)
    return found


def _read_index(path: Path) -> dict[str, str]:
    data = read_small(path, _AGAIN)
    try:
        placed = decode_object(data).get("weight_map")
    except DataError as error:
        raise CheckpointError(f"{path}: {error}; {_AGAIN}") from error
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{path}: its weight_map names no tensors; {_AGAIN}")
    for name in placed.values():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CheckpointError(f"{path}: names {name!r:.100}, which is no *.safetensors of its folder")
    return placed


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the files that count; raises `CheckpointError` for a file that is cut or damaged."""
    found: dict[str, StoredTensor] = {}
    for path, placed in weight_files(folder).items():
        here = _read_header(path)
        if missing := sorted(placed - here.keys()):
            raise CheckpointError(f"{path}: has no '{missing[0]:.100}', which {INDEX} places there; {_AGAIN}")
        if twice := sorted(found.keys() & here.keys()):
            other = found[twice[0]].file.name
            raise CheckpointError(f"{path}: has '{twice[0]:.100}', as has {other}; only one can count")
        found |= here
    return found


def _read_header(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
        with safe_open(path, framework="numpy") as stored:
            parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
            described = ((name, part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items())
            return {name: StoredTensor(path, dtype, shape) for name, dtype, shape in described}
    except (SafetensorError, OSError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise CheckpointError(f"{path}: not read as safetensors ({size}: {error}); {_AGAIN}") from error


Wanted = Iterable[tuple[str, Mapping[str, tuple[int, ...]]]]


def check_tensors(folder: Path, found: Mapping[str, StoredTensor], wanted: Wanted) -> None:
    """Refuse what is not just the model of config.json, by the names and sizes of the tensors it needs.

    `wanted` has them by the checkpoint's tensor that they become a part of, in which all have one type. What
    else there is, and is no part of the model, is named in the log.
    """
    own = [name for name in found if name.startswith(_MODEL) and not name.endswith(_COMPUTED)]
    for name in own:
        if (dtype := found[name].dtype) not in _READ:
            what = f"'{name:.100}' is {dtype}; only {', '.join(_READ)} are read, no quantised weights"
            raise CheckpointError(f"{found[name].file}: {what}: give the model before quantisation")
    used = _check_wanted(folder, found, wanted)
    for name in own:
        if name not in (*used, _HEAD):
            what = f"'{name:.100}' is part of the model, but config.json has no place for it"
            raise CheckpointError(f"{found[name].file}: {what}; the two do not belong together")
    if is_first_process():
        counted = {tensor.file.name for tensor in found.values()}
        files = {path.name for path in folder.glob("*.safetensors")} - counted
        _log_ignored(folder, "files of weights that do not count", files)
        others = [name for name in found if not name.startswith(_MODEL)]
        _log_ignored(folder, "tensors that are no part of a decoder", others)


def _check_wanted(folder: Path, found: Mapping[str, StoredTensor], wanted: Wanted) -> dict[str, str]:
    """The names that are wanted, each with the first of its key's, whose type it has."""
    used, firsts = dict[str, str](), dict[str, str]()
    for key, sizes in wanted:
        for name, size in sizes.items():
            if name not in found:
                raise CheckpointError(f"{folder}: no tensor '{name}' in its *.safetensors")
            file, dtype, shape = found[name]
            if shape != size:
                what = f"'{name}' is {shape}, by config.json {size}"
                raise CheckpointError(f"{file}: {what}; the two do not belong together")
            used[name] = firsts.setdefault(key, name)
            if dtype != (other := found[used[name]].dtype):
                what = f"'{name}' is {dtype}, '{used[name]}' {other}; convert one of them"
                raise CheckpointError(f"{file}: {what}, as a checkpoint has both in one tensor")
    return used


def _log_ignored(folder: Path, what: str, names: Collection[str]) -> None:
    if names:
        shown = first_of([f"{name:.100}" for name in sorted(names)])
        _logger.warning("%s: ignored %s: %s", folder, what, shown)
