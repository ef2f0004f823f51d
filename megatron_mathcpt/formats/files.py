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
from pydantic import BaseModel, ConfigDict, ValidationError

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
_GZIP_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]
_PACKED_BYTES = 4 << 10  # unpacked at once: 128 MB at the highest ratio, that of .zst
_RATIO_FROM_BYTES = 64 << 20  # of content: small archives of repetitive text may shrink further
TEXTS = (".txt", ".md", ".tex")
LINES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in (".gz", ".zst", ".bz2"))
TABLES = (".jsonl", *LINES, ".parquet", ".arrow")
SUFFIXES = (*TABLES, ".json", *TEXTS)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process writes to, not even one that a killed build left."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name only when the block ends well, synced to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with temporary.open("wb") as file:
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def join_files(parts: Iterable[Path], path: Path) -> None:
    """Write the contents of `parts` in order to `path`, whole or not at all."""
    with write_whole(path) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 16 << 20)


def list_files(path: str, what: str) -> list[Path]:
    """The files a `path` of the config names: itself, a folder's, or a glob's, in order of name.

    In a folder, JSON files count only where there is no table of records, and text files where there are
    neither: a README or manifest beside data is no document. Of a dataset that Hugging Face `datasets` saved,
    only its data files count. Raises `DataError` when there is none.
    """
    given = Path(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        files = [file for file in given.rglob("*") if _is_data(file)]
        kinds = (TABLES, (".json",), TEXTS)
        found = next((f for kind in kinds if (f := [x for x in files if x.name.endswith(kind)])), [])
    else:
        base = Path(given.anchor) if given.is_absolute() else Path()
        found = [file for file in base.glob(str(given.relative_to(given.anchor))) if file.is_file()]
    if not found:
        raise DataError(
            f"{path}: {what} not found; give a file, a folder of {', '.join(SUFFIXES)}, or a glob"
        )
    return sorted(found)


def _is_data(file: Path) -> bool:
    """Whether `file` is no hidden file, and in a saved dataset one that its `state.json` names."""
    if file.name.startswith("."):
        return False
    state = file.with_name("state.json")
    if not state.is_file():
        return file.name not in ("dataset_info.json", "dataset_dict.json")
    try:
        return file.name in [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return file != state


def read_lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of whole lines with the number of their first line, counted from 1.

    Raises `DataError` for a truncated or damaged archive and for a line over `MAX_LINE_BYTES`.
    """
    for number, lines in scan_lines(path):
        for place, line in enumerate(lines, number):
            if isinstance(line, DataError):
                raise DataError(f"{path}:{place}: {line}")
        yield number, cast(list[bytes], lines)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1; raises `DataError` as `read_lines` does."""
    for first, lines in read_lines(path):
        for number, line in enumerate(lines, first):
            if line.strip():
                yield number, line


def read_texts(file: Path, field: str) -> Iterator[list[str]]:
    """Blocks of the texts in `field` of JSON lines; raises `DataError` naming the line that has none."""
    for number, lines in read_lines(file):
        texts = []
        for offset, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                texts.append(orjson.loads(line)[field])
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}:{number + offset}: no JSON object with '{field}' ({error})"
                ) from error
        if texts:
            yield texts


def scan_lines(path: Path) -> Iterator[tuple[int, list[bytes | DataError]]]:
    """As `read_lines`, with an error for a line that is too long, and for all that an archive has lost."""
    number, rest, skipping = 1, b"", False
    try:
        for block in _read_blocks(path):
            _, end, tail = block.partition(b"\n") if skipping else (b"", b"", block)
            if skipping and not end:
                continue
            number, skipping = number + skipping, False
            found = io.BytesIO(rest + tail).readlines()  # half the time of bytes.split
            rest = found.pop() if found and not found[-1].endswith(b"\n") else b""
            lines: list[bytes | DataError] = [line[:-1] for line in found]
            if lines:
                yield number, lines
            number += len(lines)
            if len(rest) > MAX_LINE_BYTES:
                yield number, [DataError(f"line longer than {MAX_LINE_BYTES >> 20} MiB; split the record")]
                rest, skipping = b"", True
    except DataError as error:
        yield number + skipping, [error]
        return
    if rest:
        yield number, [rest]


def _read_blocks(path: Path) -> Iterator[bytes]:
    """All content that can be read, in blocks; then raises `DataError` if there was to be more."""
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
    except (OSError, EOFError, ValueError, _GZIP_ERROR, zstandard.ZstdError) as error:
        damage = f"cannot be read after byte {position} of its content ({error})"
    yield b"".join(parts)
    if damage:
        raise DataError(damage)


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


_BYTES = 16 << 20  # handed over at once, or more; each request costs the file system a commit


class EarlySync:
    """Hands what was written to `file` to the disk beside the work, one request at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)
        self._request: Future[None] | None = None
        self._new = 0

    def wrote(self, count: int) -> None:
        """Note that `count` bytes were written; raises `OSError` if the disk could not take earlier ones."""
        self._new += count
        if self._new >= _BYTES and (self._request is None or self._request.done()):
            self._check()
            self._request, self._new = self._thread.submit(os.fdatasync, self._file.fileno()), 0

    def finish(self) -> None:
        """Return when the disk has all; raises `OSError` if it could not take it."""
        self._file.flush()
        self._check()
        os.fdatasync(self._file.fileno())
        self._thread.shutdown()

    def _check(self) -> None:
        if self._request is not None:
            self._request.result()


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, sync it, and rename it to `path`: whole, or not there."""
    with write_whole(path) as file:
        file.write(data)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class JsonLines:
    """An append-only file of JSON lines; each row is flushed, so a kill loses at most one torn line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append `row` as one line."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a `JsonLines` file; a torn last line, left by a kill, is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises `DataError` if it holds none."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run its stage again") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); run its stage again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


class Row(BaseModel):
    """Base of a typed row; fields that the reader does not use are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Found = TypeVar("Found", bound=Row)


def read_rows(path: Path, kind: type[Found]) -> list[Found]:
    """As `read_json_lines`, each row checked; raises `DataError` naming a file or line that is damaged."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run its stage again") from error
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise DataError(f"{path}:{number}: {explain(error)}; run its stage again") from error
    return rows


def explain(error: ValidationError) -> str:
    """What pydantic refused first, with its field."""
    field, message = first_error(error)
    return f"{field}: {message}" if field else message
