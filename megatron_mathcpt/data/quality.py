"""Gopher's rules on quality (arXiv 2112.11446, section A.1.1): words, lines and stop words of a web page.

Words are those between spaces. Where most of a text is Chinese they are not words: its characters count for
`min_words` and `max_words`, and the rules on word length, symbols, letters and stop words do not judge it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from megatron_mathcpt.config.corpus import Quality
from megatron_mathcpt.data.drops import Drop, above, below
from megatron_mathcpt.data.word_counts import ALPHABETIC, IDEOGRAPH, NO_PUNCTUATION, WordCounts, totals

_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's
_STOP_WORD = re.compile(rf"(?<!\S)(?:{'|'.join(_STOP_WORDS)})(?!\S)")


class _Text(NamedTuple):
    """Counts of one text; `plain` are words that are not all punctuation, `letters` those with a letter."""

    words: int
    plain: int
    plain_characters: int
    letters: int
    characters: int
    chinese_characters: int


def quality_drops(texts: Sequence[str], words: WordCounts, rules: Quality) -> list[Drop | None]:
    """For each of the texts, none of them empty, the first rule that it breaks."""
    plain, chinese = words.kinds & NO_PUNCTUATION > 0, words.kinds & IDEOGRAPH > 0
    columns = (
        words.lengths > 0,
        plain,
        words.lengths * plain,
        words.kinds & ALPHABETIC > 0,
        words.lengths,
        words.lengths * chinese,
    )
    counts = zip(*(totals(column, words.first).tolist() for column in columns), strict=True)
    return [_drop(text, _Text(*found), rules) for text, found in zip(texts, counts, strict=True)]


def _drop(text: str, found: _Text, rules: Quality) -> Drop | None:
    chinese = 2 * found.chinese_characters > found.characters
    words = found.chinese_characters if chinese else found.plain
    ellipses = text.count("...") + text.count("…")
    return (
        below("few_words", words, rules.min_words)
        or above("many_words", words, rules.max_words)
        or (None if chinese else _words(text, found, ellipses, rules))
        or _lines(text, ellipses, rules)
    )


def _words(text: str, found: _Text, ellipses: int, rules: Quality) -> Drop | None:
    length = found.plain_characters / max(1, found.plain)
    return (
        below("short_words", length, rules.min_mean_word_length)
        or above("long_words", length, rules.max_mean_word_length)
        or above("symbols", max(text.count("#"), ellipses) / found.words, rules.max_symbols_per_word)
        or below("few_words_with_letters", found.letters / found.words, rules.min_words_with_letters)
        or _stop_words(text, rules.min_stop_words or 0)
    )


def _stop_words(text: str, limit: int) -> Drop | None:
    """English text shows enough of them at once; the slower search is for text that does not."""
    if sum(f" {word} " in text for word in _STOP_WORDS) >= limit:
        return None
    return below("few_stop_words", len(set(_STOP_WORD.findall(text))), limit)


def _lines(text: str, ellipses: int, rules: Quality) -> Drop | None:
    lines = text.splitlines()
    drop = None
    if rules.max_bullet_lines is not None and _may_exceed(lines, rules.max_bullet_lines):
        share = sum(map(_has_bullet, lines)) / len(lines)
        drop = above("bullet_lines", share, rules.max_bullet_lines)
    if rules.max_ellipsis_lines is not None and ellipses > rules.max_ellipsis_lines * len(lines):
        share = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        drop = drop or above("ellipsis_lines", share, rules.max_ellipsis_lines)
    return drop


def _may_exceed(lines: list[str], limit: float) -> bool:
    """Whether the first lines leave room for a share of bullets above `limit`; almost no text needs more."""
    others = int((1 - limit) * len(lines)) + 1
    return any(map(_has_bullet, lines[:others]))


def _has_bullet(line: str) -> bool:
    return line.lstrip().startswith(("•", "-"))
