"""Why a document is dropped: the first rule that it violates, by name, with what was measured.

How to add a filter, that is, a drop reason, is in megatron_mathcpt/README.md. Which problem records a source
takes is decided before, by selection.py; `find_drops` judges texts.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megatron_mathcpt.config.corpus import Filter, Languages, Quality, Repetition
from megatron_mathcpt.data import words as cut
from megatron_mathcpt.data.words import Hashes, Indices, Words, batches, count_words, jit, split_words

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_BAD = re.compile("[\ufffd\ue000-\uf8ff]")  # replacement and private-use characters, left by broken decoding
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))  # Gopher's
_READ, _JUDGED = 4_000, 1_000  # characters of the text, and of its letters, that decide its language
_FORMULA = re.compile(r"\$\$?[^$]*\$\$?|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+", re.DOTALL)
_NO_LETTERS = re.compile(r"[\W\d_]+")
_SINGLE = re.compile(r"(?<!\S)[A-Za-z](?: [A-Za-z])*(?!\S)")
# The identifier mistakes Chinese text with rare characters for one of these.
_CHINESE = frozenset(("yue", "wuu", "lzh", "nan", "hak", "gan"))
_HAN, _KANA = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"), re.compile("[\u3041-\u30ff]")


class Drop(NamedTuple):
    """A named reason; `measured` and `limit` are None where the reason says it all."""

    reason: str
    measured: float | None = None
    limit: float | None = None


def above(reason: str, measured: float, limit: float | None) -> Drop | None:
    """A drop if `measured` exceeds `limit`; None turns the rule off."""
    return Drop(reason, measured, limit) if limit is not None and measured > limit else None


def below(reason: str, measured: float, limit: float | None) -> Drop | None:
    return Drop(reason, measured, limit) if limit is not None and measured < limit else None


# Rules on a whole text, cheap ones first; the first violated one names the drop.
TEXT_RULES: list[Callable[[str, Filter], Drop | None]] = [
    lambda text, rules: Drop("empty") if not text or text.isspace() else None,
    lambda text, rules: below("too_short", len(text), rules.min_characters),
    lambda text, rules: above("too_long", len(text), rules.max_characters),
    lambda text, rules: Drop("long_word") if cut.has_long_word(text) else None,
    lambda text, rules: above("bad_characters", _bad_share(text), rules.max_bad_character_share),
    lambda text, rules: above("repeated_lines", _duplicate_share(text), rules.max_duplicate_line_share),
]


def find_drops(texts: Sequence[str], rules: Filter) -> list[Drop | None]:
    """For each of `texts` the first rule that it violates."""
    drops = [next(filter(None, (rule(text, rules) for rule in TEXT_RULES)), None) for text in texts]
    # Words are cut for many texts at once, and only for those that passed the cheap rules.
    rest = [number for number, drop in enumerate(drops) if drop is None]
    if rules.quality or rules.repetition:
        for numbers in batches(rest, [len(texts[number]) for number in rest]):
            part = [texts[number] for number in numbers]
            words, found = split_words(part), list[list[Drop | None]]()
            if rule := rules.quality:
                counts = zip(part, count_words(words).tolist(), strict=True)
                found.append([_quality_drop(text, count, rule) for text, count in counts])
            if rules.repetition:
                found.append(_repetition_drops(part, words, rules.repetition))
            for number, *broken in zip(numbers, *found, strict=True):
                drops[number] = next(filter(None, broken), None)
    if rules.languages:
        for number in rest:
            drops[number] = drops[number] or language_drop(texts[number], rules.languages)
    return drops


def _bad_share(text: str) -> float:
    # Searching first for the bytes that begin all such characters in UTF-8 is ten times as fast.
    if text.isascii() or not (b"\xee" in (data := text.encode()) or b"\xef" in data):
        return 0.0
    return len(_BAD.findall(text)) / len(text)


def _duplicate_share(text: str) -> float:
    """Share of characters in lines that occurred before (Gopher, arXiv 2112.11446, table A1)."""
    # Characters, not lines: a textbook repeats short lines such as "Solution:".
    lines = text.split("\n")
    unique = set(lines)
    if len(unique) == len(lines):
        return 0.0
    return 1 - sum(map(len, unique)) / (len(text) - len(lines) + 1)


def _quality_drop(text: str, counts: list[int], rules: Quality) -> Drop | None:
    """Gopher's rules on quality (section A.1.1), on words between spaces."""
    words, plain, plain_characters, letters, characters, chinese_characters = counts
    # Chinese has no spaces: its characters count as words for the size, and the rules on word length,
    # symbols, letters and stop words do not apply.
    chinese = 2 * chinese_characters > characters
    size = chinese_characters if chinese else plain
    drop = below("few_words", size, rules.min_words) or above("many_words", size, rules.max_words)
    if not (drop or chinese):
        length = plain_characters / max(1, plain)
        symbols = max(text.count("#"), text.count("...") + text.count("…"))
        drop = (
            below("short_words", length, rules.min_mean_word_length)
            or above("long_words", length, rules.max_mean_word_length)
            or above("symbols", symbols / words, rules.max_symbols_per_word)
            or below("few_words_with_letters", letters / words, rules.min_words_with_letters)
            or below("few_stop_words", _stop_words(text, rules.min_stop_words or 0), rules.min_stop_words)
        )
    lines = text.splitlines()
    # For almost any text the number of marks alone shows that the share cannot exceed the limit.
    marked = lines if text.count("-") + text.count("•") > (rules.max_bullet_lines or 0) * len(lines) else []
    bullets = sum(line.lstrip().startswith(("•", "-")) for line in marked)
    dotted = lines if "..." in text or "…" in text else []
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in dotted)
    return (
        drop
        or above("bullet_lines", bullets / len(lines), rules.max_bullet_lines)
        or above("ellipsis_lines", ellipses / len(lines), rules.max_ellipsis_lines)
    )


def _stop_words(text: str, enough: int) -> int:
    # English text almost always has enough of them between spaces; only other text is split into words.
    shown = sum(f" {word} " in text for word in _STOP_WORDS)
    return shown if shown >= enough else len(_STOP_WORDS.intersection(text.split()))


def _repetition_drops(texts: list[str], words: Words, rules: Repetition) -> list[Drop | None]:
    """Gopher's rules on repetition (table A1): lines and paragraphs first, then n-grams of words."""
    drops = [_repeated_lines_drop(text, rules) for text in texts]
    limits = [(f"top_{n}_gram", n, 0, limit) for n, limit in rules.top_ngrams.items()]
    limits += [(f"duplicate_{n}_grams", n, 1, limit) for n, limit in rules.duplicate_ngrams.items()]
    for reason, n, which, limit in limits:
        for number, found in enumerate(repeated_ngrams(words, n)[which].tolist()):
            drops[number] = drops[number] or above(reason, found / len(texts[number]), limit)
    return drops


def _repeated_lines_drop(text: str, rules: Repetition) -> Drop | None:
    lines = [line for line in text.split("\n") if line] if rules.lines is not None else [text]
    paragraphs = re.split(r"\n{2,}", text) if "\n\n" in text else [text]
    unique = set(paragraphs)
    copied = sum(map(len, paragraphs)) - sum(map(len, unique))
    return (
        above("repeated_line_count", 1 - len(set(lines)) / len(lines), rules.lines)
        or above("repeated_paragraph_count", 1 - len(unique) / len(paragraphs), rules.paragraphs)
        or above("repeated_paragraph_characters", copied / len(text), rules.paragraph_characters)
    )


def repeated_ngrams(words: Words, length: int) -> tuple[Indices, Indices]:
    """Characters in repeated n-grams of `length` words, two counts for every text.

    First, in all occurrences of the most frequent n-gram (0 if none occurs twice; the longest of several),
    with one space between words, as in datatrove. Second, in n-grams that occurred before, each once.
    """
    # Datatrove's second count is lower, as it jumps over each n-gram that it finds; ours is the paper's. An
    # n-gram that occurs once is no repetition, however much of a short text it is.
    return _repeated(*words.ngrams(length), words.documents, words.ends - words.starts, length)


@jit
def _repeated(
    grams: Hashes, firsts: Indices, documents: Indices, sizes: Indices, length: int
) -> tuple[Indices, Indices]:
    top, copied = np.zeros(len(documents) - 1, np.int64), np.zeros(len(documents) - 1, np.int64)
    slots = np.empty(0, np.int64)  # a hash table: the number of the first n-gram with a hash
    counts = np.zeros(len(grams), np.int64)
    low = 0
    for document in range(len(top)):
        high = low
        while high < len(firsts) and firsts[high] < documents[document + 1]:
            high += 1
        room = 1
        while room < 2 * (high - low):  # at most half full, so that probing stays short
            room *= 2
        if room > len(slots):
            slots = np.empty(room, np.int64)
        slots[:room] = -1
        covered, often, largest = 0, 1, 0
        for gram in range(low, high):
            slot = np.int64(grams[gram] & np.uint64(room - 1))
            while slots[slot] >= 0 and grams[slots[slot]] != grams[gram]:
                slot = (slot + 1) & (room - 1)
            if slots[slot] < 0:
                slots[slot] = gram
                counts[gram] = 1
                continue
            counts[slots[slot]] += 1
            first, last = firsts[gram], firsts[gram] + length
            copied[document] += sizes[max(covered, first) : last].sum()
            covered = last
            if counts[slots[slot]] >= often:
                size = sizes[first:last].sum() + length - 1
                largest = max(largest, size) if counts[slots[slot]] == often else size
                often = counts[slots[slot]]
        top[document] = often * largest
        low = high
    return top, copied


def language_drop(text: str, rules: Languages) -> Drop | None:
    """A drop named after the text's language, if that is probable enough and not to be kept."""
    # Formulas, LaTeX commands, numbers and single letters say nothing about the language; of a text with
    # few other letters it is unknown, and the text is kept.
    words = _NO_LETTERS.sub(" ", _FORMULA.sub(" ", text[:_READ]))
    letters = " ".join(_SINGLE.sub(" ", words).split())[:_JUDGED]
    if len(letters) - letters.count(" ") < rules.min_letters:
        return None
    # By script where that is enough: at least one Chinese character in five, and no Japanese kana.
    language, probability = "zh", 1.0
    if 5 * len(_HAN.findall(letters)) < len(letters) or _KANA.search(letters):
        language, probability = _identifier().classify(letters)
    language = "zh" if language in _CHINESE else language
    if language in rules.keep or probability < rules.min_probability:
        return None
    return Drop(f"language_{language}", float(probability), rules.min_probability)


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # `check_build` has looked for it

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
