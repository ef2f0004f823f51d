"""Find benchmark items inside training documents: in a build, and for the report on an evaluation's items.

An item gives all its n-grams (words in English, characters in Chinese, punctuation left out). An item
shorter than one n-gram gives a single n-gram of its own length; a very short one ("Compute 7!") would be
found all over, so it counts only as a line of its own, with or without our question marker. An item that can
be indexed in no way is an error, never a hole in the index.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from megatron_mathcpt.config.corpus import Decontaminate
from megatron_mathcpt.data.words import (
    DIGITS,
    IDEOGRAPH,
    SYMBOL,
    Flags,
    Hashes,
    Indices,
    Words,
    batches,
    cut_words,
    ngrams,
    spans,
)
from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats.files import hash_file, list_files, numbered_lines, read_json_lines, read_texts
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import prompt_text
from megatron_mathcpt.statistics import accuracy_standard_error

_LINE = 0  # in the table of n-gram lengths: whole lines
_TABLE_BITS = 20  # flags of a megabyte: within the processor's cache


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One item's question and where it stands."""

    benchmark: str
    id: str
    question: str
    where: str


@dataclass(frozen=True)
class Hit:
    """The strongest overlap of one document: which item, which text, and the share of the item's n-grams."""

    benchmark: str
    item: str
    ngram: str
    share: float
    masked: bool


class _Found(NamedTuple):
    """One n-gram of one item at one word of one document."""

    item: int
    gram: int
    first: int
    last: int


class _Grams:
    """Sorted n-gram hashes of one length with the items that hold them."""

    def __init__(self, hashes: Hashes, items: Indices) -> None:
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.items = hashes[order], items[order]

    def find(self, hashes: Hashes) -> tuple[Indices, Indices]:
        """Every pair (place in `hashes`, place in the index) of equal hashes."""
        low = np.searchsorted(self.hashes, hashes, side="left")
        high = np.searchsorted(self.hashes, hashes, side="right")
        counts = high - low
        starts = np.repeat(low - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
        return np.repeat(np.arange(len(hashes)), counts), starts + np.arange(counts.sum())


class _Heads:
    """The first words of every n-gram, as many of each: where they stand in a document, there is more to see.

    A table of bits refuses most places at once, the sorted hashes the rest.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = np.unique(hashes)
        self._maybe = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._maybe[self._slot(self._hashes)] = True

    @staticmethod
    def _slot(hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - _TABLE_BITS)

    def find(self, words: Words, length: int) -> Indices:
        """The words of `words` that begin an n-gram."""
        hashes, first = ngrams(words, length, self._maybe)
        if not len(self._hashes):
            return first
        nearest = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        begins: Indices = first[self._hashes[nearest] == hashes]
        return begins


class _Variant:
    """Index over one form of the words: as they stand, or with numbers masked."""

    def __init__(self, items: Sequence[BenchmarkQuestion], config: Decontaminate, masked: bool) -> None:
        self.masked = masked
        self._config = config
        self._head_words = min(config.short_words, config.short_characters)
        self.totals = np.ones(len(items), np.int64)
        collected: dict[int, list[tuple[Hashes, int]]] = {}
        heads = [np.empty(0, np.uint64)]
        self._longest_line = 0  # in words, of those that count as lines
        for number, item in enumerate(items):
            length, hashes, begins = self._grams_of(item)
            collected.setdefault(length, []).append((hashes, number))
            heads.append(begins)
            self.totals[number] = len(hashes) if length else 1
        self._heads = _Heads(np.concatenate(heads))
        self._grams = {
            length: _Grams(
                np.concatenate([hashes for hashes, _ in parts]),
                np.concatenate([np.full(len(hashes), number) for hashes, number in parts]),
            )
            for length, parts in sorted(collected.items())
        }

    def form(self, words: Words) -> Words:
        """`words` in this variant's form, without symbols."""
        words = words.select(words.kinds != SYMBOL)
        if not self.masked:
            return words
        numbers = words.kinds == DIGITS
        repeated = np.zeros(len(numbers), np.bool_)
        repeated[1:] = numbers[1:] & numbers[:-1]
        repeated[words.documents[:-1][words.documents[:-1] < len(numbers)]] = False
        masked = replace(words, hashes=np.where(numbers, np.uint64(DIGITS), words.hashes))
        return masked.select(~repeated)

    def find(self, words: Words) -> list[_Found]:
        """All n-grams of items in `words`, which have this variant's form."""
        found: list[_Found] = []
        begins = self._heads.find(words, self._head_words)
        ends = words.documents[np.searchsorted(words.documents, begins, side="right")]
        for length, grams in self._grams.items():
            if length == _LINE:
                first, last = words.lines, np.append(words.lines[1:], len(words.hashes))
                short = last - first <= self._longest_line
                first, last = first[short], last[short]
            else:
                first = begins[begins + length <= ends]
                last = first + length
            places, entries = grams.find(spans(words, first, last))
            found += [
                _Found(int(grams.items[e]), int(e), int(first[p]), int(last[p]))
                for p, e in zip(places, entries, strict=True)
            ]
        return found

    def _grams_of(self, item: BenchmarkQuestion) -> tuple[int, Hashes, Hashes]:
        """Length, hashes of all n-grams and of their first words; a line has none of those."""
        words = self.form(cut_words([item.question]))
        count = len(words.hashes)
        if count == 0:
            raise DataError(
                f"{item.where}: item '{item.id}' has no word to index; correct the item or remove it"
            )
        chinese = (words.kinds == IDEOGRAPH).mean() > 0.3
        length = self._config.ngram_characters if chinese else self._config.ngram_words
        short = self._config.short_characters if chinese else self._config.short_words
        if count >= short:
            length = min(count, length)
            hashes, first = ngrams(words, length)
            return length, np.unique(hashes), spans(words, first, first + self._head_words)
        line = " ".join(item.question.split())
        markers = [prompt_text("", language).split("\n")[0] for language in ("en", "zh")]
        lines = self.form(cut_words([line, *(f"{marker} {line}" for marker in markers)]))
        self._longest_line = max(self._longest_line, int(np.diff(lines.documents).max()))
        return _LINE, spans(lines, lines.documents[:-1], lines.documents[1:]), np.empty(0, np.uint64)


class Contamination:
    """Index of all benchmark items of a config, ready to search documents."""

    def __init__(self, config: Decontaminate) -> None:
        self.items = [item for path in config.benchmarks for item in load_items(path)]
        self._config = config
        masks = (False, True) if config.mask_numbers else (False,)
        self._variants = [_Variant(self.items, config, masked) for masked in masks]

    def search(self, words: Words, problems: Flags) -> dict[int, Hit]:
        """The hit of every contaminated document; `problems` marks those held to `problem_overlap`."""
        hits: dict[int, Hit] = {}
        for variant in self._variants:
            formed = variant.form(words)
            found = variant.find(formed)
            by_pair: dict[tuple[int, int], list[_Found]] = {}
            documents = np.searchsorted(formed.documents, [f.first for f in found], side="right") - 1
            for document, one in zip(documents, found, strict=True):
                by_pair.setdefault((int(document), one.item), []).append(one)
            for (document, number), grams in sorted(by_pair.items()):
                share = min(1.0, len({gram.gram for gram in grams}) / int(variant.totals[number]))
                needed = self._config.problem_overlap if problems[document] else 0.0
                if share < needed or (document in hits and hits[document].share >= share):
                    continue
                item, gram = self.items[number], grams[0]
                text = formed.text(gram.first, gram.last)
                hits[document] = Hit(item.benchmark, item.id, text, round(share, 3), variant.masked)
        return hits

    def shares(self, documents: Iterable[list[str]]) -> list[float]:
        """For each item the share of its n-grams that stand in the documents, given in blocks."""
        variant, seen = self._variants[0], set[tuple[int, int]]()
        for block in documents:
            for texts in batches(block, list(map(len, block))):
                found = variant.find(variant.form(cut_words(texts)))
                seen.update((one.item, one.gram) for one in found)
        counts = np.bincount([item for item, _ in seen], minlength=len(self.items))
        return list(np.minimum(1.0, counts / variant.totals).tolist())


def load_items(path: str) -> list[BenchmarkQuestion]:
    """Items of a benchmark file or folder; a benchmark is named by folder and file (`gsm8k/test`).

    Raises `DataError` naming file and line for anything that is not an item with a question.
    """
    items: list[BenchmarkQuestion] = []
    for file in list_files(path, "benchmark"):
        name = f"{file.parent.name}/{file.name.split('.')[0]}"
        found = [_item(line, name, f"{file}:{number}") for number, line in numbered_lines(file)]
        if not found:
            raise DataError(
                f"{file}: no items; decontamination against an empty benchmark would hide overlaps"
            )
        items += found
    return items


def _item(line: bytes, benchmark: str, where: str) -> BenchmarkQuestion:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); correct the benchmark file") from error
    question = row.get("question") if isinstance(row, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: item without 'question'; correct the benchmark file")
    return BenchmarkQuestion(benchmark, str(row.get("id", where)), question, where)


def benchmark_files(config: Decontaminate) -> list[Path]:
    """All files the index is made from."""
    return [file for path in config.benchmarks for file in list_files(path, "benchmark")]


def overlap_report(
    evaluation: Path, tasks: dict[str, Path], documents: Sequence[Path], threshold: float
) -> dict[str, Any]:
    """Overlap of an evaluation folder's items with training documents, and its scores without those items.

    `tasks` are the files of the tasks, `documents` JSON lines with a field `text`, or folders of `*.jsonl`,
    as a build's `documents/`; an item overlaps from a share `threshold` of its n-grams on. Raises
    `EvaluationError` when a task was scored on another file, `DataError` for documents that cannot be read.
    """
    manifest = load_manifest(evaluation, "evaluation")
    for task, path in tasks.items():
        if manifest.inputs.get(f"task:{task}") != hash_file(path):
            raise EvaluationError(f"{path}: not the file that task '{task}' of {evaluation} was scored on")
    rules = Decontaminate(benchmarks=list(map(str, tasks.values())))
    index = Contamination(rules)
    shares = iter(zip(index.items, index.shares(_read_blocks(documents)), strict=True))
    found = {}
    for task, path in tasks.items():
        own = {item.id: share for item, share in islice(shares, len(load_items(str(path))))}
        rows = read_json_lines(evaluation / f"samples_{task}.jsonl")
        overlap = {name: round(share, 4) for name, share in own.items() if share}
        found[task] = scores_without(rows, own, threshold) | {"overlap": overlap}
    lengths = {"words": rules.ngram_words, "characters": rules.ngram_characters}
    return {"threshold": threshold, **lengths, "tasks": found}


def _read_blocks(paths: Sequence[Path]) -> Iterator[list[str]]:
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise DataError(
                f"{path}: no documents here; give a *.jsonl file with a field `text`, or their folder"
            )
        for file in files:
            yield from read_texts(file, "text")


def scores_without(
    rows: Sequence[dict[str, Any]], shares: dict[str, float], threshold: float
) -> dict[str, Any]:
    """Accuracy over all items, over those below `threshold` of overlap, and over the rest.

    `rows` are lines of `samples_<task>.jsonl`. Raises `EvaluationError` when an item has no overlap measured.
    """
    if missing := [row["id"] for row in rows if row["id"] not in shares]:
        raise EvaluationError(f"item '{missing[0]}': in the samples, but not in the task file")
    clean = [row for row in rows if shares[row["id"]] < threshold]
    overlapping = [row for row in rows if shares[row["id"]] >= threshold]
    return {"all": _score(rows), "clean": _score(clean), "overlapping": _score(overlapping)}


def _score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    n, correct = len(rows), sum(row["correct"] for row in rows)
    error = accuracy_standard_error(correct, n) if n > 1 else None
    return {"n": n, "correct": correct, "accuracy": correct / n if n else None, "stderr": error}
