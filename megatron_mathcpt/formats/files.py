"""Atomic writes, input files by path or glob, plain or compressed JSON lines in blocks, hashes."""

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain, takewhile
from math import inf
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from megatron_mathcpt.errors import DataError, first_error
from megatron_mathcpt.formats import archives
from megatron_mathcpt.formats.archives import DAMAGE, UNPACKERS, DamagedFile, packing_of, spelling, unpack
from megatron_mathcpt.formats.json_arrays import is_document
from megatron_mathcpt.formats.strict_json import decode_json, decode_object
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject

BLOCK_BYTES = 8 << 20
# A longer line is not a record, or an archive made to fill the memory: with this limit, and that of lines in
# a block, reading stays below 1 GB (a character takes up to 4 bytes, a row of one value 200).
MAX_LINE_BYTES = 32 << 20
MAX_LINES = 1 << 15  # in a block
WHOLE = 0, 1 << 62  # bytes, as `part` of a file
MAX_RATIO = 100  # text shrinks 3 to 10 times; an archive that unpacks to more than this is a trap
_RATIO_FROM_BYTES = 8 << 20  # of content: small archives of repetitive text may shrink further
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYNC_BYTES = 16 << 20  # flushed at once, or more; each flush costs the file system a commit
TEXTS = (".txt", ".md", ".tex")
LINES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in UNPACKERS)
TABLES = (".jsonl", *LINES, ".parquet", ".arrow")
SUFFIXES = (*TABLES, ".json", *TEXTS)
_LOG = get_logger(__name__)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as `path`, complete, only if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # no other process writes to it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            # Content before name: after a power cut a renamed file could otherwise be empty.
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # What a write raises names no file, and numpy's gives no number: `500 requested and 20 written`.
        if isinstance(error, OSError) and (error.errno in _FULL or str(error).endswith(" written")):
            raise DataError(f"{path}: {error.strerror or error}; make room and run again") from error
        raise


def write_atomically(path: Path, data: bytes) -> None:
    with atomic_writer(path) as file:
        file.write(data)


def join_files(parts: Iterable[Path], path: Path) -> None:
    with atomic_writer(path) as file:
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


class BackgroundFsync:
    """Flush `file` to disk from a background thread, one flush at a time, to keep the last fsync short."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._new, self._thread = file, 0, ThreadPoolExecutor(1)
        self._flush: Future[None] = self._thread.submit(lambda: None)

    def wrote(self, count: int) -> None:
        """Count written bytes; raises `OSError` if an earlier flush failed."""
        self._new += count
        if self._new >= _SYNC_BYTES and self._flush.done():
            self._flush.result()
            self._flush, self._new = self._thread.submit(os.fdatasync, self._file.fileno()), 0

    def finish(self) -> None:
        """Return when everything is on disk; raises `OSError` if a flush failed."""
        self._file.flush()
        self._flush.result()
        os.fdatasync(self._file.fileno())
        self._thread.shutdown()


def list_files(path: str, what: str) -> list[Path]:
    """Files that a `path` of the config names, sorted: a file, a folder's data files, or those of a glob.

    What a folder or a glob has besides is counted by suffix in the log.
    """
    given = Path(path)
    try:
        if given.is_file():
            return [given]
        globbed = not given.is_dir()
        every = [*_globbed(given)] if globbed else [(file, _is_data(file, given)) for file in _walk(given)]
    except (OSError, ValueError, IndexError, NotImplementedError) as error:  # no path or pattern
        raise DataError(f"{path[:200]}: {what} cannot be listed ({error})") from error
    found = choose_files(every, f"{path}: {what}", globbed=globbed)
    if absent := [file for file in found if not file.is_file()]:
        raise DataError(f"{absent[0]}: a link to a missing file; restore the file or remove the link")
    return found


def choose_files(every: list[tuple[Path, bool]], what: str, *, globbed: bool) -> list[Path]:
    """Those of `every` file, and whether it may be data, that are; the others are counted in the log."""
    # JSON counts only without tables of records, text without both: a README next to data is no document.
    kinds = (SUFFIXES, ("",)) if globbed else (TABLES, (".json",), TEXTS)
    data = [file for file, is_data in every if is_data]
    found = next(filter(None, ([x for x in data if spelling(x).endswith(kind)] for kind in kinds)), [])
    if not found:
        suffixes = ", ".join(SUFFIXES)
        raise DataError(f"{what} not found; give a file, a folder of {suffixes}, or a glob")
    others = {file for file, _ in every}.difference(found)
    counts = Counter("hidden" if x.name[0] in "._" else x.suffix.lower() or "without suffix" for x in others)
    if counts:
        _say(f"{what}: left out {', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))}")
    return sorted(found)


@lru_cache(maxsize=64)  # once in a process
def _say(text: str) -> None:
    _LOG.info("%s", text)


def is_hidden(name: str) -> bool:
    """Whether a folder of this name has no data, as Spark's `_temporary`; its `_column=value` has records."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _walk(root: Path) -> Iterator[Path]:
    """All files, and hidden folders as such; a linked folder once, after those that are no links."""

    def refuse(error: OSError) -> None:
        raise error

    seen, todo, top = set[Path](), [root], root.resolve()
    for start in todo:
        for name, folders, files in os.walk(start, onerror=refuse):
            folder, real = Path(name), Path(name).resolve()
            if real in seen or (real != top and top.is_relative_to(real)):
                folders.clear()
                continue
            seen.add(real)
            yield from (folder / one for one in (*files, *filter(is_hidden, folders)))
            folders[:] = [one for one in folders if not is_hidden(one)]
            todo += [folder / one for one in folders if (folder / one).is_symlink()]


def _globbed(given: Path) -> Iterator[tuple[Path, bool]]:
    """Files of a glob, those of a folder with a table's suffix, which Spark writes, and which are data."""
    fixed = len([*takewhile(lambda part: not any(sign in part for sign in "*?["), given.parts)])
    named = any(map(is_hidden, given.parts[fixed:]))
    for file in Path(given.anchor).glob(str(given.relative_to(given.anchor))):
        *folders, name = file.parts[fixed:] or file.parts[-1:]
        shown = named or not (name.startswith(".") or any(map(is_hidden, folders)))
        if not file.is_dir():
            yield file, shown
        elif shown and spelling(file).endswith(TABLES):
            yield from ((one, _is_data(one, file)) for one in _walk(file))


def _is_data(file: Path, root: Path) -> bool:
    # Hidden folders are copies of notebooks and file systems.
    if any(part.startswith(".") for part in file.relative_to(root).parts) or file.is_dir():
        return False
    # A dataset that Hugging Face `datasets` saved lists its files; others there are caches of its maps.
    state = file.with_name("state.json")
    try:
        if state.is_file():
            listed = decode_object(read_small(state))["_data_files"]
            return file.name in [entry["filename"] for entry in listed]
    except (DataError, KeyError, TypeError):
        return file.name != "state.json"
    return file.name not in ("dataset_info.json", "dataset_dict.json")


def read_small(path: Path, remedy: str = "give a readable file", most: float = MAX_LINE_BYTES) -> bytes:
    """A file that is read whole; raises `DataError` if it cannot be read or has more than `most` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(int(most) + 1 if most < inf else -1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); {remedy}") from error
    refuse_pointer(path, data)
    if len(data) > most:
        raise DataError(f"{path}: more than {most:,} bytes; {remedy}")
    return data


def refuse_pointer(path: Path, start: bytes) -> None:
    """Raise `DataError` if a file that begins with `start` is what Git has in place of a large one."""
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder")


Lines = Iterator[tuple[int, list[bytes | DataError]]]


def split_lines(blocks: Iterable[bytes | DataError], first: int = 1) -> Lines:
    """Blocks of whole lines, each with the number of its first line, from those of a file or its part.

    A line over `MAX_LINE_BYTES`, and the lost rest of a damaged archive, is an error in a block of its own;
    no block has more than `MAX_LINES`.
    """
    number, rest, skipping = first, b"", False
    for block in blocks:
        if isinstance(block, DataError):
            yield number + skipping, [block]
            return
        # Inside a line that is too long, drop everything up to its end without keeping it in memory.
        _, end, tail = block.partition(b"\n") if skipping else (b"", b"", block)
        if skipping and not end:
            continue
        number, skipping, whole = number + skipping, False, rest + tail
        if whole.isspace() and whole.endswith(b"\n"):
            number, rest = number + whole.count(b"\n"), b""
            continue
        found = io.BytesIO(whole).readlines()  # half the time of bytes.split
        rest = found.pop() if found and not found[-1].endswith(b"\n") else b""
        for low in range(0, len(found), MAX_LINES):
            yield number + low, [line[:-1] for line in found[low : low + MAX_LINES]]
        number += len(found)
        if len(rest) > MAX_LINE_BYTES:
            yield number, [DataError(f"line longer than {MAX_LINE_BYTES >> 20} MiB; split the record")]
            rest, skipping = b"", True
    if rest:
        yield number, [DamagedFile("the last line is cut; copy the file again") if _is_cut(rest) else rest]


def _is_cut(line: bytes) -> bool:
    """Whether a last line without an end is the beginning of a record."""
    try:
        decode_json(line)
    except DataError as error:
        wrong = "unexpected end" in str(error) or not line.rstrip().endswith(b"}")
        return line.lstrip()[:1] == b"{" and wrong
    return False


def read_lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of whole lines as `split_lines` gives them, but raise the first error with its line."""
    for number, lines in split_lines(read_blocks(path)):
        if isinstance(lines[0], DataError):
            raise DataError(f"{path}:{number}: {lines[0]}")
        yield number, cast(list[bytes], lines)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers, from 1; raises `DataError` as `read_lines` does."""
    for first, lines in read_lines(path):
        yield from ((number, line) for number, line in enumerate(lines, first) if line.strip())


def largest_content(path: Path) -> int:
    """Bytes from which on a packed file is no text."""
    return max(_RATIO_FROM_BYTES, MAX_RATIO * path.stat().st_size)


def read_range(path: Path, part: tuple[int, int]) -> Iterator[bytes]:
    """The bytes of a part of a file, in blocks that end where those of the whole file do."""
    position, end = part
    with path.open("rb") as file:
        if position:  # a pipe has a beginning only
            file.seek(position)
        while block := file.read(min(BLOCK_BYTES - position % BLOCK_BYTES, end - position)):
            yield block
            position += len(block)


def open_json(path: Path) -> tuple[bool, Iterator[bytes | DataError]]:
    """Whether a file is one JSON document, such as an array, rather than JSON lines; and its blocks."""
    blocks = read_blocks(path)
    block = next(blocks)
    head = block if isinstance(block, bytes) else b""
    return is_document(head, lines=".jsonl" in spelling(path)), chain([block], blocks)


def read_blocks(path: Path, part: tuple[int, int] = WHOLE) -> Iterator[bytes | DataError]:
    """All readable content, or `part` of a plain file, in blocks; then an error if that was not all."""
    parts: list[bytes] = []
    position, size, damage = part[0], 0, ""
    try:
        largest, damage = largest_content(path), "" if part[0] else archives.foreign(path)
        for data in () if damage else unpack(path) if packing_of(path) else read_range(path, part):
            parts.append(data if position else data.removeprefix(b"\xef\xbb\xbf"))
            position, size = position + len(data), size + len(data)
            if position > largest:  # checked on the way, before it fills the memory
                damage = f"unpacks to more than {MAX_RATIO} times its size; not a file of text"
                break
            if size >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    except DAMAGE as error:
        damage = f"cannot be read after byte {position} of its content ({error}); copy the file again"
    yield b"".join(parts)
    if damage:
        yield DamagedFile(damage)


def hash_json(value: object) -> str:
    """SHA-256 (hex) of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path, part: tuple[int, int] | None = None) -> str:
    """SHA-256 (hex) of a file, or part of it; its `OSError` names the file also where reading fails."""
    with path.open("rb") as file:
        try:
            if part is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest, left = hashlib.sha256(), part[1] - file.seek(part[0])
            while block := file.read(min(left, 1 << 18)):
                digest.update(block)
                left -= len(block)
            return digest.hexdigest()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


class JsonLines:
    """Append-only JSON lines; each row is flushed, so that a kill loses at most one torn line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: JsonObject) -> None:
        try:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:  # names no file
            raise DataError(f"{self._file.name}: {error.strerror}; make room and run again") from error

    def close(self) -> None:
        self._file.close()


def parse_row(line: bytes, file: object, number: int) -> JsonObject:
    """A row that a corpus build wrote; raises `DataError` with its file and line if it is damaged."""
    try:
        return orjson.loads(line)  # type: ignore[no-any-return]
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file}:{number}: {error}; build the corpus again") from error


class Row(BaseModel):
    """Base of a typed row; fields that the reader does not use are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Found = TypeVar("Found")
_REMEDY = "run its stage again"


def read_rows(path: Path, kind: type[Found]) -> list[Found]:
    """The rows of a `JsonLines` file, as `read_json` reads one."""
    adapter, lines = TypeAdapter(kind), read_small(path, _REMEDY, inf).split(b"\n")[:-1]
    return [_validate(adapter, line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def read_json(path: Path, kind: type[Found], remedy: str) -> Found:
    """The content of a JSON file, validated; raises `DataError` naming a wrong field, with `remedy`."""
    return _validate(TypeAdapter(kind), read_small(path, remedy), str(path), remedy)


def _validate(adapter: TypeAdapter[Found], data: bytes, where: str, remedy: str = _REMEDY) -> Found:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise DataError(f"{where}: {': '.join(filter(None, first_error(error)))}; {remedy}") from error
