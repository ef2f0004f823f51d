"""Logs of lm-eval's samples (`--log_samples --output_path OUT`): OUT/MODEL/samples_TASK_DATE.jsonl.

A line has an item's number and hash, a filter of the outputs, and each metric's value under its name. Nothing
in a log is trusted: lines are bounded and parsed strictly, and names that are printed are printable.
"""

import math
import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from megatron_mathcpt.errors import DataError, first_error
from megatron_mathcpt.formats.files import Row, numbered_lines
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.records import JsonObject

MAX_METRICS, MAX_NAME = 1000, 200  # of a log, letters
_LARGEST = 1e100  # of a value, whose square is finite too
_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_LOG = re.compile(rf"samples_([^\x00-\x1f\x7f]+)_({_DATE})\.jsonl")
_RESULTS = re.compile(rf".+_({_DATE})\.json")
# Python's writer has numbers that JSON lacks; a text with the same letters is not used.
_NOT_JSON = re.compile(rb"(?<=[:,\[] )(?:NaN|-?Infinity)(?=[,}\]])|(?<=\[)(?:NaN|-?Infinity)(?=[,\]])")
_REMEDY = "give a log that lm-eval wrote"


class _Line(Row):
    doc_id: int | str
    doc_hash: str
    prompt_hash: str = ""
    filter: str = "none"
    metrics: tuple[str, ...]


class LoggedItem(NamedTuple):
    identity: str  # hash of the item
    prompt: str  # of the prompt


Values = dict[int | str, float]  # by number of the item; NaN where a metric gives no number


@dataclass(frozen=True)
class SampleLog:
    """The log of a task: its items, and each metric's values, by (filter, metric)."""

    path: Path
    items: dict[int | str, LoggedItem] = field(default_factory=dict)
    metrics: dict[tuple[str, str], Values] = field(default_factory=dict)


def find_logs(path: Path) -> tuple[dict[str, Path], int]:
    """Logs by task of a file or folder, none if it is not lm-eval's; how many older ones are left out.

    Of several dates the newest counts, task by task; a results file chooses its date's logs. Raises
    `DataError` for logs of several models, and for results without any.
    """
    dated = _RESULTS.fullmatch(path.name) if path.is_file() else None
    if path.is_file() and not dated:
        named = _LOG.fullmatch(path.name)
        return {named[1] if named else path.stem: path}, 0
    folders = [path.parent] if dated else [path, *sorted(below for below in path.iterdir() if below.is_dir())]
    files = {folder: sorted(folder.iterdir()) for folder in folders}
    logs = [
        (named[2], named[1], file)
        for file in chain.from_iterable(files.values())
        if (named := _LOG.fullmatch(file.name)) and (not dated or named[2] == dated[1])
    ]
    if not logs and any(_RESULTS.fullmatch(file.name) for file in chain.from_iterable(files.values())):
        raise DataError(f"{path}: no samples_TASK_DATE.jsonl; score with --log_samples")
    if len(models := sorted({file.parent for *_, file in logs})) > 1:
        raise DataError(f"{path}: logs of several models; give one of {', '.join(map(str, models))}")
    found = {task: file for _, task, file in sorted(logs)}
    return found, len(logs) - len(found)


def read_log(path: Path) -> SampleLog:
    log = SampleLog(path)
    for number, line in numbered_lines(path):
        try:
            row = decode_object(_NOT_JSON.sub(b"null", line))
            _add(log, row, _Line.model_validate(row))
        except ValidationError as error:
            found = ": ".join(filter(None, first_error(error)))
            raise DataError(f"{path}:{number}: {found}; {_REMEDY}") from error
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}; {_REMEDY}") from error
    if not log.metrics:
        raise DataError(f"{path}: no samples with metrics; {_REMEDY}")
    return log


def _add(log: SampleLog, row: JsonObject, line: _Line) -> None:
    item, known = line.doc_id, LoggedItem(line.doc_hash, line.prompt_hash)
    if log.items.setdefault(item, known) != known:
        raise DataError(f"item {item!r} differs from an earlier line")
    if not all(name.isprintable() and len(name) < MAX_NAME for name in (line.filter, *line.metrics)):
        raise DataError("a filter's or metric's name is too long, or not printable")
    for name in line.metrics:
        values = log.metrics.setdefault((line.filter, name), {})
        if item in values:
            raise DataError(f"item {item!r} appears twice")
        values[item] = _number(name, row.get(name))
    if len(log.metrics) > MAX_METRICS:
        raise DataError(f"more than {MAX_METRICS:,} metrics")


def _number(metric: str, value: object) -> float:
    # lm-eval logs what it sums up: natural log-likelihood and bytes.
    if metric == "bits_per_byte" and isinstance(value, list) and len(value) == 2:
        total, size = (_number("", part) for part in value)
        return -total / math.log(2) / size if size > 0 else math.nan
    return float(value) if isinstance(value, (bool, int, float)) and abs(value) < _LARGEST else math.nan
