"""Quality rules: for each of many documents the first rule that it breaks, by name, or None.

Bad characters are replacement and private-use characters, left by broken decoding. Repeated lines follow the
repetition rules of Gopher (arXiv 2112.11446, table A1, duplicate line character fraction 0.20 for web pages);
characters and not lines are counted, as a textbook repeats short lines such as "Solution:".
"""

import re
from collections.abc import Iterator, Sequence

from megatron_mathcpt.config.corpus import Filter
from megatron_mathcpt.data.drops import Drop, above, below
from megatron_mathcpt.data.language import language_drop
from megatron_mathcpt.data.quality import quality_drops
from megatron_mathcpt.data.repetition import repetition_drops
from megatron_mathcpt.data.word_counts import count_words
from megatron_mathcpt.data.words import BATCH_CHARACTERS

_BAD = re.compile("[\ufffd\ue000-\uf8ff]")


def find_drops(texts: Sequence[str], rules: Filter) -> list[Drop | None]:
    """For each of `texts` the first rule that it breaks."""
    drops = [_drop(text, rules) for text in texts]
    if rules.quality or rules.repetition:
        for numbers in _batches(texts, [number for number, drop in enumerate(drops) if drop is None]):
            for number, drop in zip(
                numbers, _page_drops([texts[number] for number in numbers], rules), strict=True
            ):
                drops[number] = drop
    if rules.languages:
        drops = [
            drop or language_drop(text, rules.languages) for drop, text in zip(drops, texts, strict=True)
        ]
    return drops


def _page_drops(texts: list[str], rules: Filter) -> list[Drop | None]:
    words = count_words(texts)
    drops: list[Drop | None] = [None] * len(texts)
    if rules.quality:
        drops = quality_drops(texts, words, rules.quality)
    if rules.repetition:
        later = repetition_drops(texts, words, rules.repetition)
        drops = [first or second for first, second in zip(drops, later, strict=True)]
    return drops


def _batches(texts: Sequence[str], numbers: Sequence[int]) -> Iterator[list[int]]:
    """`numbers` in order, in lists of about `BATCH_CHARACTERS` characters of text."""
    batch, size = [], 0
    for number in numbers:
        batch.append(number)
        size += len(texts[number])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _drop(text: str, rules: Filter) -> Drop | None:
    if not text:
        return Drop("empty")
    characters = len(text)
    if drop := below("too_short", characters, rules.min_characters):
        return drop
    if drop := above("too_long", characters, rules.max_characters):
        return drop
    if rules.max_bad_character_share is not None and (
        drop := above("bad_characters", _bad_share(text), rules.max_bad_character_share)
    ):
        return drop
    if rules.max_duplicate_line_share is not None:
        return above("repeated_lines", _duplicate_share(text), rules.max_duplicate_line_share)
    return None


def _bad_share(text: str) -> float:
    """The bytes that begin all such characters in UTF-8 are looked for first, at ten times the speed."""
    if text.isascii() or not (b"\xee" in (data := text.encode()) or b"\xef" in data):
        return 0.0
    return len(_BAD.findall(text)) / len(text)


def _duplicate_share(text: str) -> float:
    """Share of the characters that stand in lines already seen."""
    lines = text.split("\n")
    unique = set(lines)
    if len(unique) == len(lines):
        return 0.0
    total = sum(map(len, lines))
    return 1 - sum(map(len, unique)) / total if total else 0.0
