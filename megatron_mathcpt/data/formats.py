"""Rows of one input file of any known format: JSON lines or a JSON array, Parquet, Arrow, or plain text.

Every row is a mapping or a named reject; a file that ends in the middle gives a reject for the rest.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.errors import one_line
from megatron_mathcpt.formats.files import MAX_LINE_BYTES, TEXTS, Damage, scan_lines

Row = dict[str, Any]
_BATCH_ROWS = 1024  # of Parquet and Arrow, turned into Python objects at once


@dataclass(frozen=True)
class Reject:
    """A line or row that is no record, where it stands (counted from 1) and why."""

    line: int
    reason: str


def read_rows(path: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    """Blocks of numbered rows in file order; blank lines are no rows."""
    readers = {".parquet": _parquet_rows, ".arrow": _arrow_rows, ".json": _json_rows}
    readers |= dict.fromkeys(TEXTS, _text_rows)
    return _folder_rows(path) if path.is_dir() else readers.get(path.suffix, _line_rows)(path)


def _line_rows(path: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    for first, lines in scan_lines(path):
        yield [_line_row(line, number) for number, line in enumerate(lines, first) if not _blank(line)]


def _blank(line: bytes | Damage) -> bool:
    return isinstance(line, bytes) and (not line or line.isspace())


def _line_row(line: bytes | Damage, number: int) -> tuple[int, Row] | Reject:
    if isinstance(line, Damage):
        return Reject(number, line.reason)
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as invalid:
            return Reject(number, f"not valid UTF-8 at byte {invalid.start} of the line")
        return Reject(number, f"not JSON ({error})")
    if not isinstance(row, dict):
        return Reject(number, f"expected a JSON object, found {type(row).__name__}")
    if key := _twice(line, row):
        return Reject(number, f"key '{key}' stands twice")
    return number, row


def _twice(line: bytes, row: Row) -> str | None:
    """A key that the object in `line` gives twice; only a line that looks so is parsed again, slowly."""
    if all(line.count(b'"%b":' % key.encode()) < 2 for key in row):
        return None
    try:
        keys = [key for key, _ in json.loads(line, object_pairs_hook=list)]
    except RecursionError:
        return None
    return next((key for key in row if keys.count(key) > 1), None)


def _json_rows(path: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    """One JSON array of records, or an object that holds it as `Instances`; else JSON lines."""
    if path.stat().st_size > MAX_LINE_BYTES:
        yield from _line_rows(path)
        return
    try:
        tree = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        yield from _line_rows(path)
        return
    rows = tree.get("Instances", [tree]) if isinstance(tree, dict) else tree
    yield [_checked(row, number) for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1)]


def _checked(row: Any, number: int) -> tuple[int, Row] | Reject:
    if isinstance(row, dict):
        return number, row
    return Reject(number, f"expected a JSON object, found {type(row).__name__}")


def text_files(folder: Path) -> list[Path]:
    """The text files that stand in `folder` itself, in order of name."""
    return sorted(file for file in folder.iterdir() if file.suffix in TEXTS)


def _folder_rows(folder: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    """One document a text file, numbered in order of name."""
    for number, file in enumerate(text_files(folder), 1):
        for rows in _text_rows(file):
            yield [
                Reject(number, f"{file.name}: {row.reason}") if isinstance(row, Reject) else (number, row[1])
                for row in rows
            ]


def _text_rows(path: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    """A file that is one document, named by its path."""
    if path.stat().st_size > MAX_LINE_BYTES:
        yield [Reject(1, f"text of more than {MAX_LINE_BYTES >> 20} MiB; split it")]
        return
    try:
        yield [(1, {"id": path.name, "text": path.read_bytes().decode("utf-8-sig")})]
    except UnicodeDecodeError as error:
        yield [Reject(1, f"not valid UTF-8 at byte {error.start} of the file")]


def _parquet_rows(path: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    import pyarrow.parquet

    return _table_rows(lambda: pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS))


def _arrow_rows(path: Path) -> Iterator[list[tuple[int, Row] | Reject]]:
    """An Arrow stream, as Hugging Face `datasets` saves, or an Arrow file."""
    import pyarrow

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(source)
                parts = map(reader.get_batch, range(reader.num_record_batches))
            else:
                source.seek(0)
                parts = iter(pyarrow.ipc.open_stream(source))
            for part in parts:
                for low in range(0, part.num_rows, _BATCH_ROWS):
                    yield part.slice(low, _BATCH_ROWS)

    return _table_rows(batches)


def _table_rows(batches: Callable[[], Iterator[Any]]) -> Iterator[list[tuple[int, Row] | Reject]]:
    import pyarrow

    number = 1
    try:
        for batch in batches():
            yield list(_batch_rows(batch, number))
            number += batch.num_rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield [Reject(number, f"cannot be read from this row on ({one_line(str(error))})")]


def _batch_rows(batch: Any, first: int) -> Iterator[tuple[int, Row] | Reject]:
    """Rows of a batch that was checked first, as a damaged file can have Arrow read beyond its end."""
    import pyarrow

    try:
        batch.validate(full=True)
        yield from enumerate(batch.to_pylist(), first)
    except pyarrow.ArrowInvalid as error:
        if batch.num_rows == 1:
            yield Reject(first, f"damaged value ({one_line(str(error))})")
            return
        for offset in range(batch.num_rows):
            yield from _batch_rows(batch.slice(offset, 1), first + offset)
