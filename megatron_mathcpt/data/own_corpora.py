"""A user's own pools, `<pool>.jsonl` or `<pool>.jsonl.gz`, checked line by line before anything is built.

general and math_corpus: `id`, `text`, `source`. problem_solving: `question`, `solution`, `answer`, and where
known `id`, `lang`, `stage`, `steps`, `source`; every other field is kept as it is under `extra`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import read_lines
from megatron_mathcpt.records import Problem

POOLS = ("general", "math_corpus", "problem_solving")
_PROBLEM_FIELDS = frozenset(Problem.model_fields) - {"language", "extra"}


def own_files(folder: Path) -> dict[str, Path]:
    """The file of each pool; raises `DataError` naming the first that is missing."""
    found = {}
    for pool in POOLS:
        names = [folder / f"{pool}.jsonl", folder / f"{pool}.jsonl.gz"]
        found[pool] = next((name for name in names if name.is_file()), names[0])
        if not found[pool].is_file():
            raise DataError(f"{names[0]}: not found, nor with .gz; put one JSON record a line there")
    return found


def own_documents(path: Path) -> Iterator[dict[str, Any]]:
    """Rows with id, text and source; raises `DataError` naming the line of a record without text."""
    for where, row in _records(path):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: record without text; give a non-empty string 'text' or drop the line")
        yield {
            "id": str(row.get("id", where)),
            "text": text,
            "source": str(row.get("source", path.name)),
        }


def own_problems(path: Path) -> list[Problem]:
    """All problems of a file; raises `DataError` naming the line of one without question or answer."""
    return [_problem(where, row) for where, row in _records(path)]


def _problem(where: str, row: dict[str, Any]) -> Problem:
    known = {"id": where} | {key: row[key] for key in _PROBLEM_FIELDS if row.get(key) is not None}
    extra = {key: value for key, value in row.items() if key not in _PROBLEM_FIELDS and key != "lang"}
    try:
        return Problem(**known, language=row.get("lang", "en"), extra=extra)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = first["loc"][0]
        if first["type"] == "missing" or not row.get(str(field), True):
            raise DataError(f"{where}: record without {field}; add it or drop the line") from error
        raise DataError(f"{where}: field '{field}': {first['msg']}; mend it or drop the line") from error


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, object) of every line that is not blank; raises `DataError` for an empty file."""
    empty = True
    for first, lines in read_lines(path):
        for number, line in enumerate(lines, first):
            if line.strip():
                empty = False
                yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    if empty:
        raise DataError(f"{path}: empty; put at least one JSON record in it")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); mend or drop the line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}; mend or drop the line")
    return row
