"""Find benchmark items inside training documents: in a build, and for the report on an evaluation's items.

An item is indexed by all its n-grams (words in English, characters in Chinese, without punctuation). An item
shorter than one n-gram is a single n-gram of its own length; a very short one ("Compute 7!") would match
everywhere, so it matches only as a line of its own, with or without our question marker.
"""

# Why `Decontaminate` defaults to 13 words and 30 characters: 13 is GPT-3's length (arXiv 2005.14165, app. C).
# Of 13,917 documents (textbooks, GSM8K's and TAL-SCQ5K's training problems) 13 and 30 find 49. 8 words find
# 203, mostly phrases ("the least common multiple of two numbers is"), 10 words 81; 20 words lose a copy of a
# GSM8K item. 20 characters add a problem that shares only a list of digits; 45 lose two true copies. The
# report on an evaluation uses the same index with these defaults, whatever its corpus was built with.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.config.corpus import Decontaminate
from megatron_mathcpt.data.texts import list_inputs, read_texts
from megatron_mathcpt.data.words import DIGITS, IDEOGRAPH, SYMBOL, Hashes, Indices, Words, batches, cut_words
from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats.benchmark import MAX_ITEMS
from megatron_mathcpt.formats.evaluation_folder import samples_path
from megatron_mathcpt.formats.files import hash_file, list_files, numbered_lines, read_rows
from megatron_mathcpt.formats.manifest import load_manifest, verify_part
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.records import JsonObject, prompt_text
from megatron_mathcpt.statistics import accuracy_standard_error

_MAX_CHARACTERS = 8_000_000  # of a benchmark file's questions, indexed in memory
_LINE = 0  # as an n-gram length: whole lines
_TABLE_BITS = 20  # a megabyte of flags fits the processor's cache
_Found = tuple[int, int, int, int]  # item, its n-gram, first word, word after the last


class BenchmarkQuestion(NamedTuple):
    benchmark: str
    id: str
    question: str
    where: str  # file and line


@dataclass(frozen=True)
class Hit:
    """The largest overlap of one document: which item, which text, and the share of the item's n-grams."""

    benchmark: str
    item: str
    ngram: str
    share: float
    masked: bool


class _Index:
    """Index of all items' n-grams, over words as written or with numbers masked."""

    def __init__(self, items: Sequence[BenchmarkQuestion], config: Decontaminate, masked: bool) -> None:
        self.masked = masked
        self._config = config
        self._head_words = min(config.short_words, config.short_characters)
        self._longest_line = 0  # in words, of the items that match as lines
        cut = [self._grams_of(item) for item in items]
        self.totals = np.array([len(hashes) if length else 1 for length, hashes, _ in cut])
        # A document is searched only where the first words of an n-gram occur: a table of flags rejects most
        # places at once, the sorted hashes the rest. Four times as fast as one pass per n-gram length.
        self._heads = np.unique(np.concatenate([heads for *_, heads in cut]))
        self._maybe = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._maybe[self._heads & np.uint64(len(self._maybe) - 1)] = True
        self._grams: dict[int, tuple[Hashes, Indices]] = {}  # by length: sorted, each with its item
        for length in sorted({length for length, *_ in cut}):
            parts = {number: hashes for number, (own, hashes, _) in enumerate(cut) if own == length}
            hashes = np.concatenate(list(parts.values()))
            owners = np.repeat(list(parts), list(map(len, parts.values())))
            order = np.argsort(hashes, kind="stable")
            self._grams[length] = hashes[order], owners[order]

    def normalize(self, words: Words) -> Words:
        """`words` without symbols and, if masked, with each run of numbers as one."""
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
        """All n-grams of items in normalized `words`."""
        found: list[_Found] = []
        hashes, begins = words.ngrams(self._head_words, self._maybe)
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
            hashes = words.span_hashes(first, last)
            low, high = np.searchsorted(grams, hashes, "left"), np.searchsorted(grams, hashes, "right")
            places = np.flatnonzero(low < high)
            # Once for each document: a text may consist of one n-gram a million times.
            document = np.searchsorted(words.documents, first[places], side="right")
            places = places[np.unique(document * len(grams) + low[places], return_index=True)[1]]
            # From `low` to `high`: several items may share an n-gram.
            found += [
                (int(owners[gram]), gram, int(first[place]), int(last[place]))
                for place in np.sort(places)
                for gram in range(low[place], high[place])
            ]
        return found

    def _grams_of(self, item: BenchmarkQuestion) -> tuple[int, Hashes, Hashes]:
        """Length, hashes of all n-grams, and hashes of their first words (none for a line)."""
        words = self.normalize(cut_words([item.question]))
        # An error, not a skipped item: a hole in the index would pass for a clean corpus.
        if not (count := len(words.hashes)):
            raise DataError(f"{item.where}: item '{item.id}' has no word to index; correct or remove it")
        chinese = (words.kinds == IDEOGRAPH).mean() > 0.3
        length = self._config.ngram_characters if chinese else self._config.ngram_words
        short = self._config.short_characters if chinese else self._config.short_words
        if count >= short:
            length = min(count, length)
            hashes, first = words.ngrams(length)
            return length, np.unique(hashes), words.span_hashes(first, first + self._head_words)
        line = " ".join(item.question.split())
        markers = [prompt_text("", language).split("\n")[0] for language in ("en", "zh")]
        lines = self.normalize(cut_words([line, *(f"{marker} {line}" for marker in markers)]))
        self._longest_line = max(self._longest_line, int(np.diff(lines.documents).max()))
        return _LINE, lines.document_hashes(), np.empty(0, np.uint64)


class Contamination:
    """Search documents for the benchmark items of a config."""

    def __init__(self, config: Decontaminate) -> None:
        self.items = [item for file in benchmark_files(config) for item in load_items(file)]
        self._config = config
        masks = (False, True) if config.mask_numbers else (False,)
        self._indexes = [_Index(self.items, config, masked) for masked in masks]

    def search(self, words: Words, problems: npt.NDArray[np.bool_]) -> dict[int, Hit]:
        """The hit of every contaminated document; `problem_overlap` applies to those marked in `problems`."""
        hits: dict[int, Hit] = {}
        for index in self._indexes:
            normalized = index.normalize(words)
            found = index.find(normalized)
            by_pair: dict[tuple[int, int], list[_Found]] = {}
            firsts = [first for *_, first, _ in found]
            documents = np.searchsorted(normalized.documents, firsts, side="right") - 1
            for document, one in zip(documents.tolist(), found, strict=True):
                by_pair.setdefault((document, one[0]), []).append(one)
            for (document, number), grams in sorted(by_pair.items()):
                share = min(1.0, len({gram for _, gram, *_ in grams}) / int(index.totals[number]))
                # Any run is a copy in prose; two problems of one template share runs that are not.
                needed = self._config.problem_overlap if problems[document] else 0.0
                if share < needed or (document in hits and hits[document].share >= share):
                    continue
                text = normalized.text(*grams[0][2:])
                benchmark, item, *_ = self.items[number]
                hits[document] = Hit(benchmark, item, text, round(share, 3), index.masked)
        return hits

    def shares(self, documents: Iterable[list[str]]) -> list[float]:
        """For each item the share of its n-grams that occur in the documents, which come in blocks."""
        index, seen = self._indexes[0], set[tuple[int, int]]()
        for block in documents:
            for texts in batches(block, list(map(len, block))):
                seen.update(one[:2] for one in index.find(index.normalize(cut_words(texts))))
        counts = np.bincount([item for item, _ in seen], minlength=len(self.items))
        return list(np.minimum(1.0, counts / index.totals).tolist())


def load_items(file: Path) -> list[BenchmarkQuestion]:
    """Read a benchmark file; raises `DataError` with file and line for an item without question."""
    items, name = list[BenchmarkQuestion](), f"{file.parent.name}/{file.name.split('.')[0]}"  # `gsm8k/test`
    rest = _MAX_CHARACTERS
    for number, line in numbered_lines(file):
        where = f"{file}:{number}"
        try:
            row = decode_object(line)
        except DataError as error:
            raise DataError(f"{where}: {error}; fix or remove the line") from error
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: item without 'question'; correct the benchmark file")
        items.append(BenchmarkQuestion(name, str(row.get("id", where)), question, where))
        rest -= len(question)
        if len(items) > MAX_ITEMS or rest < 0:
            most = f"{MAX_ITEMS:,} items or {_MAX_CHARACTERS:,} characters"
            raise DataError(f"{where}: more than {most}; not a benchmark, divide the file")
    if not items:
        raise DataError(f"{file}: no items; an empty benchmark would hide overlaps")
    return items


def benchmark_files(config: Decontaminate | None) -> list[Path]:
    """Files of the benchmarks in `config`; none if the build does not decontaminate."""
    return [file for path in (config.benchmarks if config else ()) for file in list_files(path, "benchmark")]


def overlap_report(
    evaluation: Path, tasks: dict[str, Path], documents: Sequence[Path], threshold: float
) -> JsonObject:
    """Overlap of an evaluation folder's items with training documents, and its scores without those items.

    `tasks` maps tasks to their files; `documents` are files with a field `text`, or folders of them such as a
    build's `documents/`; an item overlaps if at least `threshold` of its n-grams are found.
    """
    manifest = load_manifest(evaluation, "evaluation")
    verify_part(evaluation, manifest)
    # The shares must be of exactly the items that were scored.
    for task, path in tasks.items():
        if manifest.inputs.get(f"task:{task}") != hash_file(path):
            raise EvaluationError(f"{path}: not the file that task '{task}' of {evaluation} was scored on")
    rules = Decontaminate(benchmarks=list(map(str, tasks.values())))
    index = Contamination(rules)
    shards = list_inputs([*map(str, documents)])
    blocks = (texts for _, (texts,) in read_texts(shards, ["text"]))
    shares = iter(zip(index.items, index.shares(blocks), strict=True))
    found: dict[str, JsonObject] = {}
    for task, path in tasks.items():
        own = {item.id: share for item, share in islice(shares, len(load_items(path)))}
        rows = read_rows(samples_path(evaluation, task), JsonObject)
        overlap = {name: round(share, 4) for name, share in own.items() if share}
        found[task] = {**scores_without(rows, own, threshold), "overlap": overlap}
    words, characters = rules.ngram_words, rules.ngram_characters
    return {"threshold": threshold, "words": words, "characters": characters, "tasks": found}


def scores_without(rows: list[JsonObject], shares: dict[str, float], limit: float) -> JsonObject:
    """Scores over all items in `rows` of a samples file, those with overlap below `limit`, and the rest."""
    if missing := [row["id"] for row in rows if row["id"] not in shares]:
        raise EvaluationError(f"item '{missing[0]}': in the samples, but not in the task file")
    parts = {
        "all": rows,
        "clean": [row for row in rows if shares[row["id"]] < limit],
        "overlapping": [row for row in rows if shares[row["id"]] >= limit],
    }
    scores: JsonObject = {}
    for name, part in parts.items():
        n, correct = len(part), sum(row["correct"] for row in part)
        error = accuracy_standard_error(correct, n) if n > 1 else None
        scores[name] = {"n": n, "correct": correct, "accuracy": correct / n if n else None, "stderr": error}
    return scores
