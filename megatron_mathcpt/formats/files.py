"""Files that are whole or not there, finding input files, reading lines in blocks, plain or compressed."""

import bz2
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import orjson
import zstandard
from isal import isal_zlib
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from megatron_mathcpt.errors import DataError, first_error

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 64 << 20  # a longer line is not a record, or an archive made to fill the memory
MAX_RATIO = 250  # an archive of text shrinks 3 to 10 times; one that unpacks to more than this is a trap
# All with `decompress`, `eof` and `unused_data`; of a truncated archive zstandard's own file says nothing.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: isal_zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
}
_DAMAGE: Any = (OSError, EOFError, ValueError, isal_zlib.error, zstandard.ZstdError)
_PACKED_BYTES = 4 << 10  # unpacked at once: 128 MB at the highest ratio, that of .zst
_RATIO_FROM_BYTES = 64 << 20  # of content: small archives of repetitive text may shrink further
_SYNC_BYTES = 16 << 20  # handed over at once, or more; each request costs the file system a commit
TEXTS = (".txt", ".md", ".tex")
LINES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in _UNPACKERS)
TABLES = (".jsonl", *LINES, ".parquet", ".arrow")


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name only when the block ends well, both synced to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # no other process writes to it
    with temporary.open("wb") as file:
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: whole, or not there."""
    with write_whole(path) as file:
        file.write(data)


def join_files(parts: Iterable[Path], path: Path) -> None:
    """Write the contents of `parts` in order to `path`, whole or not at all."""
    with write_whole(path) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 16 << 20)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class EarlySync:
    """Hands what was written to `file` to the disk beside the work, one request at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._new, self._thread = file, 0, ThreadPoolExecutor(1)
        self._request: Future[Any] = self._thread.submit(int)  # none yet

    def wrote(self, count: int) -> None:
        """Note that `count` bytes were written; raises `OSError` if the disk could not take earlier ones."""
        self._new += count
        if self._new >= _SYNC_BYTES and self._request.done():
            self._request.result()
            self._request, self._new = self._thread.submit(os.fdatasync, self._file.fileno()), 0

    def finish(self) -> None:
        """Return when the disk has all; raises `OSError` if it could not take it."""
        self._file.flush()
        self._request.result()
        os.fdatasync(self._file.fileno())
        self._thread.shutdown()


def list_files(path: str, what: str) -> list[Path]:
    """The files a `path` of the config names: itself, a folder's, or a glob's, in order of name.

    In a folder, JSON files count only where there is no table of records, and text files where there are
    neither: a README or manifest beside data is no document. Of a dataset that Hugging Face `datasets` saved,
    only its data files count. Raises `DataError` when there is none.
    """
    given, kinds = Path(path), (TABLES, (".json",), TEXTS)
    if given.is_file():
        return [given]
    if given.is_dir():
        files = [file for file in given.rglob("*") if _is_data(file)]
        found = next(filter(None, ([x for x in files if x.name.endswith(kind)] for kind in kinds)), [])
    else:
        pattern = str(given.relative_to(given.anchor))
        found = [file for file in Path(given.anchor).glob(pattern) if file.is_file()]
    if not found:
        suffixes = ", ".join(suffix for kind in kinds for suffix in kind)
        raise DataError(f"{path}: {what} not found; give a file, a folder of {suffixes}, or a glob")
    return sorted(found)


def _is_data(file: Path) -> bool:
    """Whether `file` is no hidden file, and in a saved dataset one that its `state.json` names."""
    if file.name.startswith("."):
        return False
    try:
        state = json.loads(file.with_name("state.json").read_bytes())
        return file.name in [entry["filename"] for entry in state["_data_files"]]
    except OSError:
        return file.name not in ("dataset_info.json", "dataset_dict.json")
    except (ValueError, KeyError, TypeError):
        return file.name != "state.json"


def scan_lines(path: Path) -> Iterator[tuple[int, list[bytes | DataError]]]:
    """Blocks of whole lines with the number of their first line, counted from 1.

    A line over `MAX_LINE_BYTES`, and all that a truncated or damaged archive has lost, is an error in a
    block of its own.
    """
    number, rest, skipping = 1, b"", False
    for block in _read_blocks(path):
        if isinstance(block, DataError):
            yield number + skipping, [block]
            return
        _, end, tail = block.partition(b"\n") if skipping else (b"", b"", block)
        if skipping and not end:
            continue
        number, skipping = number + skipping, False
        found = io.BytesIO(rest + tail).readlines()  # half the time of bytes.split
        rest = found.pop() if found and not found[-1].endswith(b"\n") else b""
        if found:
            yield number, [line[:-1] for line in found]
        number += len(found)
        if len(rest) > MAX_LINE_BYTES:
            yield number, [DataError(f"line longer than {MAX_LINE_BYTES >> 20} MiB; split the record")]
            rest, skipping = b"", True
    if rest:
        yield number, [rest]


def read_lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """As `scan_lines`; raises the first error, with its line."""
    for number, lines in scan_lines(path):
        if isinstance(lines[0], DataError):
            raise DataError(f"{path}:{number}: {lines[0]}")
        yield number, cast(list[bytes], lines)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1; raises `DataError` as `read_lines` does."""
    for first, lines in read_lines(path):
        yield from ((number, line) for number, line in enumerate(lines, first) if line.strip())


def read_texts(file: Path, field: str) -> Iterator[list[str]]:
    """Blocks of the texts in `field` of JSON lines; raises `DataError` naming the line that has none."""
    for first, lines in read_lines(file):
        texts = []
        for number, line in enumerate(lines, first):
            try:
                texts += [orjson.loads(line)[field]] if line.strip() else []
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f"{file}:{number}: no JSON object with '{field}' ({error})") from error
        if texts:
            yield texts


def _read_blocks(path: Path) -> Iterator[bytes | DataError]:
    """All content that can be read, in blocks; then an error if there was to be more."""
    parts: list[bytes] = []
    position, size, damage = 0, 0, ""
    try:
        largest = max(_RATIO_FROM_BYTES, MAX_RATIO * path.stat().st_size)
        for part in _unpack(path):
            parts.append(part if position else part.removeprefix(b"\xef\xbb\xbf"))
            position, size = position + len(part), size + len(part)
            if position > largest:
                damage = f"unpacks to more than {MAX_RATIO} times its size; not a file of text"
                break
            if size >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    except _DAMAGE as error:
        damage = f"cannot be read after byte {position} of its content ({error})"
    yield b"".join(parts)
    if damage:
        yield DataError(damage)


def _unpack(path: Path) -> Iterator[bytes]:
    """Content of a plain or packed file in small parts; raises `EOFError` where it is truncated."""
    with path.open("rb") as file:
        if path.suffix not in _UNPACKERS:
            yield from iter(partial(file.read, BLOCK_BYTES), b"")
            return
        frame = None
        while packed := file.read(_PACKED_BYTES):
            while packed:
                if frame is None or frame.eof:  # an archive has one frame or several
                    frame = _UNPACKERS[path.suffix]()
                yield frame.decompress(packed)
                packed = frame.unused_data
        if frame is not None and not frame.eof:
            raise EOFError("truncated")


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class JsonLines:
    """An append-only file of JSON lines; each row is flushed, so a kill loses at most one torn line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        """Append `row` as one line."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a `JsonLines` file; a torn last line, left by a kill, is left out."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


class Row(BaseModel):
    """Base of a typed row; fields that the reader does not use are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Found = TypeVar("Found")
_REMEDY = "run its stage again"


def read_rows(path: Path, kind: type[Found]) -> list[Found]:
    """As `read_json_lines`, each row checked; raises `DataError` naming a file or line that is damaged."""
    adapter, lines = TypeAdapter(kind), _read(path).split(b"\n")[:-1]
    return [_checked(adapter, line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def read_json(path: Path, kind: type[Found], remedy: str) -> Found:
    """What a JSON file holds, checked; raises `DataError` naming a wrong field, with `remedy`."""
    return _checked(TypeAdapter(kind), _read(path), str(path), remedy)


def _checked(adapter: TypeAdapter[Found], data: bytes, where: str, remedy: str = _REMEDY) -> Found:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise DataError(f"{where}: {': '.join(filter(None, first_error(error)))}; {remedy}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error
