"""How much of each test item stands in the training text, and the scores without the items that do.

An item's question is cut into overlapping runs of 13 words (the usual length since GPT-3), or of 20
characters for Chinese, which has no spaces; its overlap is the share of them that occur in the training
documents. An item shorter than one run is one run of what it has.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats.benchmark import Item
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.statistics import accuracy_standard_error

WORDS, CHARACTERS = 13, 20
_TOKEN = re.compile(r"[a-z0-9]+")
_CHARACTER = re.compile(r"[0-9a-z\u3400-\u9fff]")


@dataclass(frozen=True)
class Overlap:
    """Runs of one item, and how many of them occur in the training text."""

    id: str
    runs: int
    found: int

    @property
    def share(self) -> float:
        """Part of the item that was seen."""
        return self.found / self.runs


def measure_overlap(items: Sequence[Item], documents: Iterable[str]) -> list[Overlap]:
    """Overlap of each item with the training `documents`, in the order of the items."""
    runs = {item.id: _runs(item.question, item.lang) for item in items}
    wanted: dict[tuple[str, int], set[str]] = {}  # by language and length, so a document is cut once for each
    for item in items:
        for length, run in runs[item.id]:
            wanted.setdefault((item.lang, length), set()).add(run)
    seen: set[tuple[str, str]] = set()
    for text in documents:
        for (language, length), known in wanted.items():
            tokens = _tokens(text, language)
            seen |= {(language, run) for run in _cut(tokens, length, language) if run in known}
    return [
        Overlap(item.id, len(runs[item.id]), sum((item.lang, run) in seen for _, run in runs[item.id]))
        for item in items
    ]


def scores_without(rows: list[dict[str, Any]], overlaps: list[Overlap], threshold: float) -> dict[str, Any]:
    """Accuracy over all items, over those below `threshold` of overlap, and over the rest.

    `rows` are lines of `samples_<task>.jsonl`. Raises `EvaluationError` when an item has no overlap measured.
    """
    shares = {overlap.id: overlap.share for overlap in overlaps}
    missing = [row["id"] for row in rows if row["id"] not in shares]
    if missing:
        raise EvaluationError(f"item '{missing[0]}': in the samples, but not in the task file")
    parts = {
        "all": rows,
        "clean": [row for row in rows if shares[row["id"]] < threshold],
        "overlapping": [row for row in rows if shares[row["id"]] >= threshold],
    }
    return {name: _score(part) for name, part in parts.items()}


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """Texts of JSON-lines files, or of all `*.jsonl` in folders such as a corpus build's `documents/`."""
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise DataError(
                f"{path}: no documents here; give a *.jsonl file with a field `text`, or their folder"
            )
        for file in files:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    yield _text(line, f"{file}:{number}")


def report(
    evaluation: Path, tasks: dict[str, list[Item]], documents: list[Path], threshold: float
) -> dict[str, Any]:
    """Overlap and scores of every task of an evaluation folder; the documents are read once."""
    items = [(task, item) for task, found in tasks.items() for item in found]
    named = [item.model_copy(update={"id": f"{task}\n{item.id}"}) for task, item in items]
    overlaps = measure_overlap(named, read_documents(documents))
    result: dict[str, Any] = {"threshold": threshold, "words": WORDS, "characters": CHARACTERS, "tasks": {}}
    for task in tasks:
        own = [
            Overlap(overlap.id.partition("\n")[2], overlap.runs, overlap.found)
            for overlap in overlaps
            if overlap.id.startswith(f"{task}\n")
        ]
        rows = read_json_lines(evaluation / f"samples_{task}.jsonl")
        shares = {overlap.id: round(overlap.share, 4) for overlap in own if overlap.found}
        result["tasks"][task] = scores_without(rows, own, threshold) | {"overlap": shares}
    return result


def _score(rows: list[dict[str, Any]]) -> dict[str, Any]:
    correct = sum(row["correct"] for row in rows)
    if not rows:
        return {"n": 0, "correct": 0, "accuracy": None, "stderr": None}
    error = accuracy_standard_error(correct, len(rows)) if len(rows) > 1 else None
    return {"n": len(rows), "correct": correct, "accuracy": correct / len(rows), "stderr": error}


def _tokens(text: str, language: str) -> list[str]:
    return (_CHARACTER if language == "zh" else _TOKEN).findall(text.lower())


def _cut(tokens: list[str], length: int, language: str) -> Iterator[str]:
    joint = "" if language == "zh" else " "
    for start in range(len(tokens) - length + 1):
        yield joint.join(tokens[start : start + length])


def _runs(text: str, language: str) -> list[tuple[int, str]]:
    tokens = _tokens(text, language)
    length = min(len(tokens), CHARACTERS if language == "zh" else WORDS)
    return [(length, run) for run in _cut(tokens, length, language)] if length else [(1, "")]


def _text(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a JSON object with a field `text`") from error
    return str(text)
