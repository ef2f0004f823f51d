"""Records of one source: from lines to documents, each line a document or a named reject."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.clean import clean
from megatron_mathcpt.data.files import list_files, read_lines
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import Problem, cpt_text

_ALIASES = {"language": "lang"}
_OPTIONAL = ("language", "stage", "steps")


@dataclass(frozen=True)
class Shard:
    """One input file of a source, the unit of work and of restart."""

    source: str
    number: int
    path: Path

    @property
    def name(self) -> str:
        """Name of the shard's files in the work folder."""
        return f"{self.source}-{self.number:05d}"


@dataclass(frozen=True)
class Document:
    """One document, cleaned; `problem` is None for plain text."""

    id: str
    text: str
    source: str
    problem: Problem | None = None


@dataclass(frozen=True)
class Reject:
    """A line that is no record, where it stands and why."""

    line: int
    reason: str


def list_shards(sources: dict[str, Source]) -> list[Shard]:
    """All input files in keep order; raises `DataError` naming a source whose path holds none."""
    return [
        Shard(name, number, path)
        for name, source in sources.items()
        for number, path in enumerate(list_files(source.path, f"source '{name}'"))
    ]


def read_documents(shard: Shard, source: Source) -> Iterator[list[Document | Reject]]:
    """Blocks of documents and rejects in file order; blank lines are no records."""
    for first, lines in read_lines(shard.path):
        yield [
            _parse(line, number, shard, source)
            for number, line in enumerate(lines, first)
            if line and not line.isspace()
        ]


def _parse(line: bytes, number: int, shard: Shard, source: Source) -> Document | Reject:
    try:
        row = orjson.loads(line)
        if not isinstance(row, dict):
            return Reject(number, f"expected a JSON object, found {type(row).__name__}")
        return (_problem if source.kind == "problem" else _text)(row, number, shard, source.fields)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as invalid:
            return Reject(number, f"not valid UTF-8 at byte {invalid.start} of the line")
        return Reject(number, f"not JSON ({error})")
    except DataError as error:
        return Reject(number, str(error))


def _field(row: dict[str, Any], fields: dict[str, str], name: str) -> Any:
    if name in fields:
        return row.get(fields[name])
    value = row.get(name)
    return row.get(_ALIASES[name]) if value is None and name in _ALIASES else value


def _string(row: dict[str, Any], fields: dict[str, str], name: str) -> str:
    value = _field(row, fields, name)
    key = fields.get(name, name)
    if value is None:
        raise DataError(f"record without '{key}'")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"field '{key}' is {type(value).__name__}, expected text")
    return value


def _identity(row: dict[str, Any], number: int, shard: Shard, fields: dict[str, str]) -> tuple[str, str]:
    given = _field(row, fields, "id")
    label = _field(row, fields, "source")
    return (
        f"{shard.source}/{shard.path.name}#{number}" if given is None else str(given),
        label if isinstance(label, str) and label else shard.source,
    )


def _text(row: dict[str, Any], number: int, shard: Shard, fields: dict[str, str]) -> Document:
    identity, label = _identity(row, number, shard, fields)
    return Document(identity, clean(_string(row, fields, "text")), label)


def _problem(row: dict[str, Any], number: int, shard: Shard, fields: dict[str, str]) -> Document:
    identity, label = _identity(row, number, shard, fields)
    known = {"id": identity, "source": label}
    for name in ("question", "solution", "answer"):
        known[name] = clean(_string(row, fields, name))
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
    return Document(identity, cpt_text(problem), label, problem)
