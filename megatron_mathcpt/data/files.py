"""Files that are whole or not there, and reading JSON lines in blocks, plain or compressed."""

import bz2
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from megatron_mathcpt.errors import DataError

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 256 << 20  # a longer line is not a record, or an archive made to fill the memory
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2")


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


def list_files(path: str, what: str) -> list[Path]:
    """The files a `path` of the config names: itself, a folder's, or a glob's, in order of name.

    Raises `DataError` when there is none.
    """
    given = Path(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [file for file in given.rglob("*") if file.name.endswith(SUFFIXES)]
    else:
        base = Path(given.anchor) if given.is_absolute() else Path()
        found = [file for file in base.glob(str(given.relative_to(given.anchor))) if file.is_file()]
    if not found:
        raise DataError(
            f"{path}: {what} not found; give a file, a folder of {', '.join(SUFFIXES)}, or a glob"
        )
    return sorted(found)


def read_lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of whole lines with the number of their first line, counted from 1.

    Raises `DataError` for a truncated or damaged archive and for a line over `MAX_LINE_BYTES`.
    """
    number, rest = 1, b""
    for block in _read_blocks(path):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_LINE_BYTES:
            raise DataError(
                f"{path}:{number + len(lines)}: line longer than {MAX_LINE_BYTES >> 20} MiB; split the record"
            )
        if lines:
            yield number, lines
        number += len(lines)
    if rest:
        yield number, [rest]


def _read_blocks(path: Path) -> Iterator[bytes]:
    position = 0
    try:
        with _open(path) as file:
            while block := file.read(BLOCK_BYTES):
                yield block if position else block.removeprefix(b"\xef\xbb\xbf")
                position += len(block)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: cannot be read after byte {position} of its content ({error})") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        from isal import igzip

        return cast(IO[bytes], igzip.open(path, "rb"))
    if path.suffix == ".zst":
        import zstandard

        return cast(IO[bytes], zstandard.open(path, "rb"))
    return bz2.open(path, "rb") if path.suffix == ".bz2" else path.open("rb")
