"""Which weight files of a Hugging Face folder count, and what tensors they have, from their headers alone.

As transformers chooses them: `model.safetensors`, or else the files that its index names, whole. A folder of
which another reader would take other weights is refused. A file is the length of its header in 8 bytes, the
header, which is JSON with type, shape and byte range of each tensor, and the bytes of one tensor after
another (github.com/huggingface/safetensors, "Format").
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError
from megatron_mathcpt.formats.files import hash_file, read_small, refuse_pointer
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.log import get_logger, is_first_process

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "copy it again"
_NAME = re.compile(r"[^/\\\x00-\x1f]+\.safetensors")  # of a file in the folder itself
# Bits of a number, by the name of its type.
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "I16": 16, "U16": 16}
_BITS |= dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
_BITS |= {"F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
_READ = ("F32", "BF16", "F16")
_MAX_HEADER = 100_000_000  # bytes, as in safetensors
_MAX_DIMENSIONS = 8
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_MODEL = ("model.", "lm_head.")  # what the names of a decoder's own tensors begin with
_COMPUTED = ".rotary_emb.inv_freq"  # in old files; follows from config.json
_SHOWN = 3
_logger = get_logger(__name__)


class StoredTensor(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int  # its bytes in the file
    end: int


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files that count, and the names of the tensors that an index places in each.

    Raises `ConfigError` if files are missing, or if it is not clear which ones count.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    placed = _read_index(index) if index.is_file() else {}
    if not placed and not single.is_file():
        raise ConfigError(
            f"{single}: missing, as is its index, so {folder} has no *.safetensors that count; "
            "other weight formats are not read"
        )
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
    start = b""
    try:
        with path.open("rb") as file:
            start, size = file.read(64), os.fstat(file.fileno()).st_size
            length = int.from_bytes(start[:8], "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise DataError(f"a header of {length:,} bytes, of {size:,} in all")
            file.seek(8)
            return _tensors(path, file.read(length), 8 + length, size)
    except (DataError, OSError) as error:
        refuse_pointer(path, start)
        raise CheckpointError(f"{path}: not read as safetensors ({error}); {_AGAIN}") from error


def _tensors(path: Path, header: bytes, first: int, size: int) -> dict[str, StoredTensor]:
    """What `header` says of the tensors in a file of `size` bytes, which begin at byte `first`."""
    found: dict[str, StoredTensor] = {}
    for name, entry in decode_object(header).items():
        if name != "__metadata__":
            match entry:
                case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
                    len(shape) <= _MAX_DIMENSIONS
                    and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
                    and prod(shape) * _BITS.get(dtype, 0) == (end - begin) * 8
                ):
                    found[name] = StoredTensor(path, dtype, tuple(shape), first + begin, first + end)
                case _:
                    raise DataError(f"'{name:.100}' is {entry!r:.200}")
    place = first
    for tensor in sorted(found.values(), key=lambda tensor: tensor[-2:]):
        if tensor.begin != place:
            raise DataError("its tensors do not follow one another")
        place = tensor.end
    if place != size:
        raise DataError(f"{size:,} bytes, by its header {place:,}")
    return found


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
        if name == _HEAD and name not in used:
            _check_tied(found[_HEAD], found[_EMBEDDING])
        elif name not in used:
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
            file, dtype, shape, *_ = found[name]
            if shape != size:
                what = f"'{name}' is {shape}, by config.json {size}"
                raise CheckpointError(f"{file}: {what}; the two do not belong together")
            used[name] = firsts.setdefault(key, name)
            if dtype != (other := found[used[name]].dtype):
                what = f"'{name}' is {dtype}, '{used[name]}' {other}; convert one of them"
                raise CheckpointError(f"{file}: {what}, as a checkpoint has both in one tensor")
    return used


def _check_tied(head: StoredTensor, embedding: StoredTensor) -> None:
    hashes = {hash_file(file, (begin, end)) for file, *_, begin, end in (head, embedding)}
    if head[1:3] != embedding[1:3] or len(hashes) > 1:
        what = f"{_HEAD} differs from {_EMBEDDING}, which config.json ties"
        raise CheckpointError(f"{head.file}: {what}; set tie_word_embeddings to false to keep both")


def _log_ignored(folder: Path, what: str, names: Collection[str]) -> None:
    if names:
        shown = ", ".join(f"{name:.100}" for name in sorted(names)[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        _logger.warning("%s: ignored %s: %s%s", folder, what, shown, more)
