"""Gopher's rules on repetition (arXiv 2112.11446, table A1), at the speed of a batch.

Words are those between spaces, so Chinese is judged by its lines and clauses. N-grams are counted only in
texts that their pairs of words do not acquit. As in the paper, duplicate n-grams are all characters in them,
none counted twice; datatrove, which goes on behind each one it finds, counts fewer. Ours: an n-gram that
stands once is no repetition, however much of a short text it is.
"""

import re
from collections.abc import Sequence

import numpy as np

from megatron_mathcpt.config.corpus import Repetition
from megatron_mathcpt.data.drops import Drop, above
from megatron_mathcpt.data.word_counts import (
    Counts,
    WordCounts,
    bound_top_characters,
    copied_characters,
    count_words,
    find_ngrams,
    top_characters,
)

_PARAGRAPH_ENDS = re.compile(r"\n{2,}")


def repetition_drops(texts: Sequence[str], words: WordCounts, rules: Repetition) -> list[Drop | None]:
    """For each of the texts, none of them empty, the first rule that it breaks."""
    drops = [_lines(text, rules) or _paragraphs(text, rules) for text in texts]
    if rules.top_ngrams or rules.duplicate_ngrams:
        sizes, pairs = np.array([len(text) for text in texts]), find_ngrams(words, 2)
        for n, limit in rules.top_ngrams.items():
            suspects = np.flatnonzero(bound_top_characters(words, pairs, n) > limit * sizes)
            for number, found in _count(texts, suspects, n, copied=False).items():
                drops[number] = drops[number] or above(f"top_{n}_gram", found, limit)
        for n, limit in rules.duplicate_ngrams.items():
            suspects = np.flatnonzero(copied_characters(words, pairs, n) > limit * sizes)
            for number, found in _count(texts, suspects, n, copied=True).items():
                drops[number] = drops[number] or above(f"duplicate_{n}_grams", found, limit)
    return drops


def _count(texts: Sequence[str], suspects: Counts, n: int, copied: bool) -> dict[int, float]:
    """Shares of the texts with the numbers `suspects`: of their copied, or their most frequent n-gram."""
    if not len(suspects):
        return {}
    words = count_words([texts[number] for number in suspects])
    ngrams = find_ngrams(words, n)
    found = copied_characters(words, ngrams, n) if copied else top_characters(words, ngrams)
    return {
        number: count / len(texts[number])
        for number, count in zip(suspects.tolist(), found.tolist(), strict=True)
    }


def _lines(text: str, rules: Repetition) -> Drop | None:
    if rules.lines is None:
        return None
    lines = [line for line in text.split("\n") if line]
    return above("repeated_line_count", 1 - len(set(lines)) / len(lines), rules.lines)


def _paragraphs(text: str, rules: Repetition) -> Drop | None:
    if "\n\n" not in text:
        return None
    paragraphs = _PARAGRAPH_ENDS.split(text)
    unique = set(paragraphs)
    copied = sum(map(len, paragraphs)) - sum(map(len, unique))
    drop = above("repeated_paragraph_count", 1 - len(unique) / len(paragraphs), rules.paragraphs)
    return drop or above("repeated_paragraph_characters", copied / len(text), rules.paragraph_characters)
