"""Read one source: from files of any known format to cleaned documents.

Files are JSON lines or a JSON array, Parquet, Arrow, or plain text. Every row becomes a document or is
skipped for a reason, as is the rest of a truncated file, so that nothing is lost silently.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.public_sources import ADAPTERS
from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats.files import MAX_LINE_BYTES, TEXTS, hash_file, hash_json, list_files, scan_lines
from megatron_mathcpt.records import JsonObject, Problem, cpt_text, problem_of_row

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 1024  # of Parquet and Arrow, converted to Python objects at once
# Control characters but tab and line feed, zero-width and bidirectional marks, byte order marks.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
# The rule of datatrove's PIIFormatter, which FineWeb uses; not its rule for IP addresses, which
# mistakes the number of a theorem, 1.2.3.4, for one.
_ADDRESS = re.compile(
    r"\b[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@(?:(?:[A-Za-z0-9](?:["
    r"A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?|\[(?:(?:25[0-5]|2[0-4][0-9]|["
    r"01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)


@dataclass(frozen=True)
class SourceShard:
    """One input file of a source, or the text files of one folder: the unit of work and of resuming."""

    source: str
    number: int
    path: Path
    label: str  # source and path within it, which do not change when the folder moves or grows
    files: tuple[Path, ...]  # sorted by name

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05d}"

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def hash(self) -> str:
        """SHA-256 of the file; for a folder, of its files' names and hashes."""
        if self.path in self.files:
            return hash_file(self.path)
        return hash_json([[file.name, hash_file(file)] for file in self.files])


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    source: str
    line: int  # or row in the raw file
    problem: Problem | None = None  # None for plain text


@dataclass(frozen=True)
class Skipped:
    """A line or row, from 1, that was skipped, and why; without `id` it is not even a record."""

    line: int
    reason: str
    id: str | None = None  # of a record that its source's adapter drops


NumberedRow = tuple[int, JsonObject]
Rows = Iterator[list[NumberedRow | Skipped]]  # in blocks


def list_shards(sources: dict[str, Source]) -> list[SourceShard]:
    """All input files by precedence, text files by folder; raises `DataError` for a source without any."""
    shards = []
    for name, source in sources.items():
        given = root = Path(source.path)
        while not root.is_dir():  # the folder itself, a file's, or the one before a glob's first wildcard
            root = root.parent
        units: dict[Path, list[Path]] = {}
        for file in filter(Path.is_file, list_files(source.path, f"source '{name}'")):
            units.setdefault(file.parent if file.suffix in TEXTS and file != given else file, []).append(file)
        for number, (path, files) in enumerate(units.items()):
            inside = path.name if path == root else str(path.relative_to(root))
            shards.append(SourceShard(name, number, path, f"{name}/{inside}", tuple(files)))
    return shards


def read_documents(shard: SourceShard, source: Source) -> Iterator[list[Document | Skipped]]:
    """Blocks of documents and of skipped records, in file order."""
    for rows in read_rows(shard):
        yield [row if isinstance(row, Skipped) else _record(row[1], row[0], shard, source) for row in rows]


def _record(row: JsonObject, number: int, shard: SourceShard, source: Source) -> Document | Skipped:
    if source.adapter:
        adapted = ADAPTERS[source.adapter](row)
        if isinstance(adapted, str):
            return Skipped(number, adapted, f"{shard.label}#{number}")
        row = adapted
    given, label = (_field(row, source.fields, name) for name in ("id", "source"))
    identity = f"{shard.label}#{number}" if given is None else str(given)
    label = label if isinstance(label, str) and label else shard.source
    try:
        if source.kind == "text":
            return Document(identity, _cleaned(row, source, "text"), label, number)
        problem = _problem(row, source, {"id": identity, "source": label})
    except DataError as error:
        return Skipped(number, str(error))
    return Document(identity, cpt_text(problem), label, number, problem)


def _problem(row: JsonObject, source: Source, known: JsonObject) -> Problem:
    for name in ("question", "solution", "answer"):
        known[name] = _cleaned(row, source, name)
        if not known[name]:
            raise DataError(f"record without '{source.fields.get(name, name)}'")
    optional = {name: _field(row, source.fields, name) for name in ("language", "stage", "steps")}
    known |= {name: value for name, value in optional.items() if value is not None}
    used = {*source.fields.values(), *known, "lang"}
    extra = row.get("extra", {key: value for key, value in row.items() if key not in used})
    try:
        return problem_of_row({**known, "extra": extra})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"field '{field}': {first['msg']} (found {first['input']!r})") from error


def _field(row: JsonObject, fields: dict[str, str], name: str) -> object:
    value = row.get(fields.get(name, name))
    return row.get("lang") if value is None and name == "language" and name not in fields else value


def _cleaned(row: JsonObject, source: Source, name: str) -> str:
    value, key = _field(row, source.fields, name), source.fields.get(name, name)
    if value is None:
        raise DataError(f"record without '{key}'")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"field '{key}' is {type(value).__name__}, expected text")
    return mask_pii(clean(value)) if source.mask_pii else clean(value)


def clean(text: str) -> str:
    """Normalize `text` without touching its mathematics; at most two blank lines in a row remain."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():  # not NFKC, which would turn x² into x2 and ½ into 1⁄2
        text = unicodedata.normalize("NFC", text)
    text = HIDDEN.sub("", text)
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = re.sub(r"\n{4,}", "\n\n\n", text)
    return text.strip()


def mask_pii(text: str) -> str:
    """Replace all e-mail addresses in `text` by the same one."""
    return _ADDRESS.sub("email@example.com", text) if "@" in text else text


def read_rows(shard: SourceShard) -> Rows:
    """Blocks of numbered rows in file order; blank lines are skipped silently."""
    if shard.files[0].suffix in TEXTS:
        return _text_rows(shard.files)
    readers = {".parquet": _table_rows, ".arrow": _table_rows, ".json": _json_rows}
    return readers.get(shard.path.suffix, _line_rows)(shard.path)


def _line_rows(path: Path) -> Rows:
    for first, lines in scan_lines(path):
        numbered = enumerate(lines, first)
        yield [_line_row(line, n) for n, line in numbered if isinstance(line, DataError) or line.strip()]


def require_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """`file:line` and row of each non-blank JSON line; raises `DataError` for a bad line."""
    for row in chain.from_iterable(_line_rows(path)):
        if isinstance(row, Skipped):
            raise DataError(f"{path}:{row.line}: {row.reason}; fix or remove the line")
        yield f"{path}:{row[0]}", row[1]


def _line_row(line: bytes | DataError, number: int) -> NumberedRow | Skipped:
    if isinstance(line, DataError):
        return Skipped(number, str(line))
    try:
        return _checked(orjson.loads(line), number, line)
    except orjson.JSONDecodeError as error:
        reason = f"not JSON ({error})"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not valid UTF-8 at byte {error.start} of the line"
    return Skipped(number, reason)


def _checked(row: object, number: int, line: bytes = b"") -> NumberedRow | Skipped:
    if not isinstance(row, dict):
        return Skipped(number, f"expected a JSON object, found {type(row).__name__}")
    key = _repeated_key(line, row)
    return Skipped(number, f"key '{key}' appears twice") if key else (number, row)


def _repeated_key(line: bytes, row: JsonObject) -> str | None:
    """A key that the object in `line` has twice: the parser silently keeps the last value."""
    # Only a line that may have one is parsed again, slowly.
    if all(line.count(b'"%b":' % key.encode()) < 2 for key in row):
        return None
    try:
        keys = [key for key, _ in json.loads(line, object_pairs_hook=list)]
    except RecursionError:
        return None
    return next((key for key in row if keys.count(key) > 1), None)


def _json_rows(path: Path) -> Rows:
    """A JSON array of records, or an object with one as `Instances`; else JSON lines."""
    tree = None
    if path.stat().st_size <= MAX_LINE_BYTES:
        with suppress(orjson.JSONDecodeError):
            tree = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    if tree is None:
        yield from _line_rows(path)
        return
    rows = tree.get("Instances", [tree]) if isinstance(tree, dict) else tree
    yield [_checked(row, number) for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1)]


def _text_rows(files: tuple[Path, ...]) -> Rows:
    """One document for each text file, with its name as id."""
    for number, file in enumerate(files, 1):
        if file.stat().st_size > MAX_LINE_BYTES:
            yield [Skipped(number, f"{file.name}: text of more than {MAX_LINE_BYTES >> 20} MiB; split it")]
            continue
        try:
            yield [(number, {"id": file.name, "text": file.read_bytes().decode("utf-8-sig")})]
        except UnicodeDecodeError as error:
            yield [Skipped(number, f"{file.name}: not valid UTF-8 at byte {error.start} of the file")]


def _table_rows(path: Path) -> Rows:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow; install this package's extra 'tables'") from error
    number = 1
    try:
        for batch in _table_batches(path):
            yield list(_batch_rows(batch, number))
            number += batch.num_rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield [Skipped(number, f"cannot be read from this row on ({one_line(str(error))})")]


def _table_batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    """Batches of a Parquet file, an Arrow stream (saved by Hugging Face `datasets`), or an Arrow file."""
    import pyarrow.parquet

    if path.suffix == ".parquet":
        yield from pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS)
        return
    with pyarrow.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        for batch in batches:
            for low in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(low, _BATCH_ROWS)


def _batch_rows(batch: "pyarrow.RecordBatch", first: int) -> Iterator[NumberedRow | Skipped]:
    import pyarrow

    try:
        batch.validate(full=True)  # in a damaged file Arrow could read beyond the end
        yield from enumerate(batch.to_pylist(), first)
    except pyarrow.ArrowInvalid as error:
        if batch.num_rows == 1:
            yield Skipped(first, f"damaged value ({one_line(str(error))})")
            return
        for offset in range(batch.num_rows):
            yield from _batch_rows(batch.slice(offset, 1), first + offset)
