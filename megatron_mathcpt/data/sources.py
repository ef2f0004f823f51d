"""Records of one source: from rows to documents, each row a document, not taken, or a named reject."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.adapters import adapt
from megatron_mathcpt.data.clean import clean, mask_pii
from megatron_mathcpt.data.formats import Reject, Row, read_rows, text_files
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import TEXTS, hash_file, hash_json, list_files
from megatron_mathcpt.records import Problem, cpt_text

_ALIASES = {"language": "lang"}
_OPTIONAL = ("language", "stage", "steps")


@dataclass(frozen=True)
class Shard:
    """One input file of a source, or one folder of text files: the unit of work and of restart."""

    source: str
    number: int
    path: Path
    label: str  # source and path within it: does not change when the folder moves or grows

    @property
    def name(self) -> str:
        """Name of the shard's files in the work folder."""
        return f"{self.source}-{self.number:05d}"

    @property
    def files(self) -> list[Path]:
        """What there is to read."""
        return text_files(self.path) if self.path.is_dir() else [self.path]

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)

    def hash(self) -> str:
        """SHA-256 of the file; for a folder, of its files' names and hashes."""
        if self.path.is_dir():
            return hash_json([[file.name, hash_file(file)] for file in self.files])
        return hash_file(self.path)


@dataclass(frozen=True)
class Document:
    """One document, cleaned, and its line or row in the raw file; `problem` is None for plain text."""

    id: str
    text: str
    source: str
    line: int
    problem: Problem | None = None


@dataclass(frozen=True)
class Skipped:
    """A record that its source's adapter does not take, by name of the reason."""

    id: str
    reason: str
    line: int


def list_shards(sources: dict[str, Source]) -> list[Shard]:
    """All input files in keep order, text files by folder; raises `DataError` naming a source without any."""
    return [
        Shard(name, number, path, f"{name}/{_inside(path, Path(source.path))}")
        for name, source in sources.items()
        for number, path in enumerate(_units(list_files(source.path, f"source '{name}'")))
    ]


def _inside(path: Path, given: Path) -> str:
    """`path` below the folder of `given`: itself, a file's, or that before a glob's first wildcard."""
    root = given.parent if given.is_file() else given
    while not root.is_dir():
        root = root.parent
    return path.name if path == root else str(path.relative_to(root))


def _units(files: list[Path]) -> list[Path]:
    return list(dict.fromkeys(file.parent if file.suffix in TEXTS else file for file in files))


def read_documents(shard: Shard, source: Source) -> Iterator[list[Document | Skipped | Reject]]:
    """Blocks of documents, records not taken and rejects in file order."""
    for rows in read_rows(shard.path):
        yield [row if isinstance(row, Reject) else _record(row[1], row[0], shard, source) for row in rows]


def _record(row: Row, number: int, shard: Shard, source: Source) -> Document | Skipped | Reject:
    if source.adapter:
        adapted = adapt(source.adapter, row)
        if isinstance(adapted, str):
            return Skipped(f"{shard.label}#{number}", adapted, number)
        row = adapted
    try:
        return (_problem if source.kind == "problem" else _text)(row, number, shard, source)
    except DataError as error:
        return Reject(number, str(error))


def _field(row: Row, fields: dict[str, str], name: str) -> Any:
    if name in fields:
        return row.get(fields[name])
    value = row.get(name)
    return row.get(_ALIASES[name]) if value is None and name in _ALIASES else value


def _string(row: Row, fields: dict[str, str], name: str) -> str:
    value = _field(row, fields, name)
    key = fields.get(name, name)
    if value is None:
        raise DataError(f"record without '{key}'")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"field '{key}' is {type(value).__name__}, expected text")
    return value


def _cleaned(row: Row, source: Source, name: str) -> str:
    text = clean(_string(row, source.fields, name))
    return mask_pii(text) if source.mask_pii else text


def _identity(row: Row, number: int, shard: Shard, fields: dict[str, str]) -> tuple[str, str]:
    given = _field(row, fields, "id")
    label = _field(row, fields, "source")
    return (
        f"{shard.label}#{number}" if given is None else str(given),
        label if isinstance(label, str) and label else shard.source,
    )


def _text(row: Row, number: int, shard: Shard, source: Source) -> Document:
    identity, label = _identity(row, number, shard, source.fields)
    return Document(identity, _cleaned(row, source, "text"), label, number)


def _problem(row: Row, number: int, shard: Shard, source: Source) -> Document:
    fields = source.fields
    identity, label = _identity(row, number, shard, fields)
    known = {"id": identity, "source": label}
    for name in ("question", "solution", "answer"):
        known[name] = _cleaned(row, source, name)
        if not known[name]:
            raise DataError(f"record without '{fields.get(name, name)}'")
    optional = {name: value for name in _OPTIONAL if (value := _field(row, fields, name)) is not None}
    used = {*fields.values(), *known, *optional, *_ALIASES.values()}
    extra = row.get("extra", {k: v for k, v in row.items() if k not in used})
    try:
        problem = Problem.model_validate({**known, **optional, "extra": extra})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(
            f"field '{'.'.join(map(str, first['loc']))}': {first['msg']} (found {first['input']!r})"
        ) from error
    return Document(identity, cpt_text(problem), label, number, problem)
