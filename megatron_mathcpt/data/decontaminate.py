"""Find benchmark items inside training documents: in a build, and for the report on an evaluation's items.

An item gives all its n-grams (words in English, characters in Chinese, punctuation left out). An item
shorter than one n-gram gives a single n-gram of its own length; a very short one ("Compute 7!") would be
found all over, so it counts only as a line of its own, with or without our question marker. An item that can
be indexed in no way is an error, never a hole in the index.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_mathcpt.config.corpus import Decontaminate
from megatron_mathcpt.data.sources import require_rows
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
from megatron_mathcpt.formats.files import hash_file, list_files, read_json_lines, read_texts
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import prompt_text
from megatron_mathcpt.statistics import accuracy_standard_error

_LINE = 0  # in the table of n-gram lengths: whole lines
_TABLE_BITS = 20  # flags of a megabyte: within the processor's cache
_Found = tuple[int, int, int, int]  # item, its n-gram, first word, word after the last


class BenchmarkQuestion(NamedTuple):
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


class _Variant:
    """Index over one form of the words: as they stand, or with numbers masked."""

    def __init__(self, items: Sequence[BenchmarkQuestion], config: Decontaminate, masked: bool) -> None:
        self.masked = masked
        self._config = config
        self._head_words = min(config.short_words, config.short_characters)
        self._longest_line = 0  # in words, of those that count as lines
        cut = [self._grams_of(item) for item in items]
        self.totals = np.array([len(hashes) if length else 1 for length, hashes, _ in cut])
        # Only where an n-gram begins, told by its first words, is there more to see in a document. A table of
        # bits refuses most places at once, the sorted hashes the rest.
        self._heads = np.unique(np.concatenate([heads for *_, heads in cut]))
        self._maybe = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._maybe[self._heads & np.uint64(len(self._maybe) - 1)] = True
        self._grams: dict[int, tuple[Hashes, Indices]] = {}  # by length: sorted, with the item of each
        for length in sorted({length for length, *_ in cut}):
            parts = {number: hashes for number, (own, hashes, _) in enumerate(cut) if own == length}
            hashes = np.concatenate(list(parts.values()))
            owners = np.repeat(list(parts), list(map(len, parts.values())))
            order = np.argsort(hashes, kind="stable")
            self._grams[length] = hashes[order], owners[order]

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
        hashes, begins = ngrams(words, self._head_words, self._maybe)
        nearest = np.minimum(np.searchsorted(self._heads, hashes), len(self._heads) - 1)
        begins = begins[self._heads[nearest] == hashes]
        ends = words.documents[np.searchsorted(words.documents, begins, side="right")]
        for length, (grams, owners) in self._grams.items():
            if length == _LINE:
                first, last = words.lines, np.append(words.lines[1:], len(words.hashes))
                short = last - first <= self._longest_line
                first, last = first[short], last[short]
            else:
                first = begins[begins + length <= ends]
                last = first + length
            hashes = spans(words.hashes, first, last)
            low, high = np.searchsorted(grams, hashes, "left"), np.searchsorted(grams, hashes, "right")
            found += [
                (int(owners[gram]), gram, int(first[place]), int(last[place]))
                for place in np.flatnonzero(low < high)
                for gram in range(low[place], high[place])
            ]
        return found

    def _grams_of(self, item: BenchmarkQuestion) -> tuple[int, Hashes, Hashes]:
        """Length, hashes of all n-grams and of their first words; a line has none of those."""
        words = self.form(cut_words([item.question]))
        if not (count := len(words.hashes)):
            raise DataError(f"{item.where}: item '{item.id}' has no word to index; correct or remove it")
        chinese = (words.kinds == IDEOGRAPH).mean() > 0.3
        length = self._config.ngram_characters if chinese else self._config.ngram_words
        short = self._config.short_characters if chinese else self._config.short_words
        if count >= short:
            length = min(count, length)
            hashes, first = ngrams(words, length)
            return length, np.unique(hashes), spans(words.hashes, first, first + self._head_words)
        line = " ".join(item.question.split())
        markers = [prompt_text("", language).split("\n")[0] for language in ("en", "zh")]
        lines = self.form(cut_words([line, *(f"{marker} {line}" for marker in markers)]))
        self._longest_line = max(self._longest_line, int(np.diff(lines.documents).max()))
        return _LINE, spans(lines.hashes, lines.documents[:-1], lines.documents[1:]), np.empty(0, np.uint64)


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
            documents = np.searchsorted(formed.documents, [first for *_, first, _ in found], side="right") - 1
            for document, one in zip(documents.tolist(), found, strict=True):
                by_pair.setdefault((document, one[0]), []).append(one)
            for (document, number), grams in sorted(by_pair.items()):
                share = min(1.0, len({gram for _, gram, *_ in grams}) / int(variant.totals[number]))
                needed = self._config.problem_overlap if problems[document] else 0.0
                if share < needed or (document in hits and hits[document].share >= share):
                    continue
                text = formed.text(*grams[0][2:])
                benchmark, item, *_ = self.items[number]
                hits[document] = Hit(benchmark, item, text, round(share, 3), variant.masked)
        return hits

    def shares(self, documents: Iterable[list[str]]) -> list[float]:
        """For each item the share of its n-grams that stand in the documents, given in blocks."""
        variant, seen = self._variants[0], set[tuple[int, int]]()
        for block in documents:
            for texts in batches(block, list(map(len, block))):
                seen.update(one[:2] for one in variant.find(variant.form(cut_words(texts))))
        counts = np.bincount([item for item, _ in seen], minlength=len(self.items))
        return list(np.minimum(1.0, counts / variant.totals).tolist())


def load_items(path: str) -> list[BenchmarkQuestion]:
    """Items of a benchmark file or folder; a benchmark is named by folder and file (`gsm8k/test`).

    Raises `DataError` naming file and line for anything that is not an item with a question.
    """
    items: list[BenchmarkQuestion] = []
    for file in list_files(path, "benchmark"):
        name, before = f"{file.parent.name}/{file.name.split('.')[0]}", len(items)
        for where, row in require_rows(file):
            question = row.get("question")
            if not isinstance(question, str) or not question.strip():
                raise DataError(f"{where}: item without 'question'; correct the benchmark file")
            items.append(BenchmarkQuestion(name, str(row.get("id", where)), question, where))
        if len(items) == before:
            raise DataError(f"{file}: no items; an empty benchmark would hide overlaps")
    return items


def benchmark_files(config: Decontaminate) -> list[Path]:
    """All files the index is made from."""
    return [file for path in config.benchmarks for file in list_files(path, "benchmark")]


def overlap_report(
    evaluation: Path, tasks: dict[str, Path], documents: Sequence[Path], threshold: float
) -> dict[str, Any]:
    """Overlap of an evaluation folder's items with training documents, and its scores without those items.

    `tasks` are the files of the tasks, `documents` JSON lines with a field `text`, or folders of them, as a
    build's `documents/`; an item overlaps from a share `threshold` of its n-grams on. Raises
    `EvaluationError` when a task was scored on another file, `DataError` for documents that cannot be read.
    """
    manifest = load_manifest(evaluation, "evaluation")
    for task, path in tasks.items():
        if manifest.inputs.get(f"task:{task}") != hash_file(path):
            raise EvaluationError(f"{path}: not the file that task '{task}' of {evaluation} was scored on")
    rules = Decontaminate(benchmarks=list(map(str, tasks.values())))
    index = Contamination(rules)
    files = [file for path in documents for file in list_files(str(path), "documents")]
    blocks = (block for file in files for block in read_texts(file, "text"))
    shares = iter(zip(index.items, index.shares(blocks), strict=True))
    found = {}
    for task, path in tasks.items():
        own = {item.id: share for item, share in islice(shares, len(load_items(str(path))))}
        rows = read_json_lines(evaluation / f"samples_{task}.jsonl")
        overlap = {name: round(share, 4) for name, share in own.items() if share}
        found[task] = scores_without(rows, own, threshold) | {"overlap": overlap}
    lengths = {"words": rules.ngram_words, "characters": rules.ngram_characters}
    return {"threshold": threshold, **lengths, "tasks": found}


def scores_without(
    rows: Sequence[dict[str, Any]], shares: dict[str, float], threshold: float
) -> dict[str, Any]:
    """Accuracy over all items, over those below `threshold` of overlap, and over the rest.

    `rows` are lines of `samples_<task>.jsonl`. Raises `EvaluationError` when an item has no overlap measured.
    """
    if missing := [row["id"] for row in rows if row["id"] not in shares]:
        raise EvaluationError(f"item '{missing[0]}': in the samples, but not in the task file")
    parts = {
        "all": rows,
        "clean": [row for row in rows if shares[row["id"]] < threshold],
        "overlapping": [row for row in rows if shares[row["id"]] >= threshold],
    }
    scores: dict[str, Any] = {}
    for name, part in parts.items():
        n, correct = len(part), sum(row["correct"] for row in part)
        error = accuracy_standard_error(correct, n) if n > 1 else None
        scores[name] = {"n": n, "correct": correct, "accuracy": correct / n if n else None, "stderr": error}
    return scores
