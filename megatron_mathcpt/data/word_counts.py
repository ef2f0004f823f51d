"""Counts over the words between spaces of many texts at once, for the quality and repetition rules.

Not the words of data/words.py: those rules are defined on words as written, with case and punctuation. All
arrays are over characters (UTF-32), so that lengths are characters and not bytes.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.signedinteger]
Hashes = npt.NDArray[np.uint32]  # of a pair of words in 10^9 the same
Flags = npt.NDArray[np.bool_]

ALPHABETIC, NO_PUNCTUATION, IDEOGRAPH = 1, 2, 4
_SPACE = 8
# Kana, Chinese characters, and those for compatibility: scripts that put no space between words.
_IDEOGRAPHS = ((0x3041, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
_BASE = 0x9E3779B1  # odd, so it has an inverse modulo 2^32
_ODD = np.uint32(0x85EBCA6B)


class WordCounts(NamedTuple):
    """Words of a batch of texts: `first[i]` is the first word of text i, with one entry more at the end.

    `lengths` in characters; `kinds` are bits: a letter, a character that is no punctuation, or a Chinese
    character stands in the word; `hashes` tell words apart.
    """

    first: Counts
    lengths: Counts
    kinds: npt.NDArray[np.uint8]
    hashes: Hashes


def count_words(texts: Sequence[str]) -> WordCounts:
    """Cut `texts` at white space, as `str.split` does."""
    data = np.frombuffer("\n".join(texts).encode("utf-32-le"), np.uint32)
    kinds = _kinds().take(data, mode="clip")
    spaces = np.ones(len(data) + 2, np.bool_)
    np.equal(kinds, _SPACE, out=spaces[1:-1])
    edges = np.flatnonzero(spaces[1:] != spaces[:-1])
    starts, ends = edges[::2], edges[1::2]
    offsets = np.cumsum([0, *(len(text) + 1 for text in texts)])
    found = np.bitwise_or.reduceat(kinds, starts) if len(starts) else kinds[:0]
    first = np.searchsorted(starts, offsets).astype(np.int64)
    return WordCounts(first, ends - starts, found, _hash(data, starts, ends))


def totals(values: npt.NDArray[np.generic], first: Counts) -> Counts:
    """Sum of `values` over the words of each text."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return sums[first[1:]] - sums[first[:-1]]


class Ngrams(NamedTuple):
    """All runs of n words of a batch: the text of each, how often it stands in that text (0: it lies across
    two texts), and whether it stood there before."""

    n: int
    document: Counts
    counts: Counts
    copies: Flags


def find_ngrams(words: WordCounts, n: int) -> Ngrams:
    """The n-grams of `words`."""
    document = np.repeat(np.arange(len(words.first) - 1), np.diff(words.first))
    count = max(0, len(document) - n + 1)
    keys = document[:count].astype(np.uint32) * np.uint32(_BASE)
    for offset in range(n):
        keys = keys * _ODD + words.hashes[offset : offset + count]
    earlier = _first_seen(_mix(keys))
    inside = document[:count] == document[len(document) - count :]
    counts = np.bincount(earlier[inside], minlength=count)[earlier] * inside
    return Ngrams(n, document[:count], counts, (earlier != np.arange(count)) & inside)


def top_characters(words: WordCounts, ngrams: Ngrams) -> Counts:
    """Characters in all occurrences of each text's most frequent n-gram, 0 where none stands twice.

    Between its words stands one space, as in datatrove; of equally frequent ones the longest counts.
    """
    often = _largest(ngrams.counts, ngrams, len(words.first) - 1)
    most = (ngrams.counts == often[ngrams.document]) & (ngrams.counts > 1)
    return often * _largest(_sizes(words, ngrams.n) * most, ngrams, len(words.first) - 1)


def bound_top_characters(words: WordCounts, pairs: Ngrams, n: int) -> Counts:
    """What `top_characters` of n-grams does not exceed: no n-gram is more frequent than its rarest pair."""
    sizes = _sizes(words, n)
    least = pairs.counts[: len(sizes)]
    for offset in range(1, n - 1):
        least = np.minimum(least, pairs.counts[offset:][: len(sizes)])
    return _largest(least * sizes * (least > 1), pairs, len(words.first) - 1)


def copied_characters(words: WordCounts, ngrams: Ngrams, n: int) -> Counts:
    """Characters of each text in n-grams that stood in it before, none counted twice.

    Exact for `ngrams` of that n; for shorter ones never less, as a copied n-gram is a run of copied parts.
    """
    edges = np.flatnonzero(np.diff(ngrams.copies, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2] + ngrams.n - 1  # the words that a run of copies covers
    long = ends - begins >= n
    begins, ends = begins[long], ends[long]
    document = ngrams.document[begins]
    begins[1:] = np.maximum(begins[1:], ends[:-1])
    sums = np.concatenate(([0], np.cumsum(words.lengths)))
    characters = (sums[ends] - sums[begins]).astype(np.float64)
    return np.bincount(document, characters, len(words.first) - 1).astype(np.int64)


def _sizes(words: WordCounts, n: int) -> Counts:
    """Characters of every n-gram with a space between its words."""
    count = max(0, len(words.lengths) - n + 1)
    sizes = np.full(count, n - 1)
    for offset in range(n):
        sizes += words.lengths[offset : offset + count]
    return sizes


def _largest(values: Counts, ngrams: Ngrams, texts: int) -> Counts:
    """Largest of the values, one for each n-gram, in each text; 0 where a text has none."""
    largest = np.zeros(texts, np.int64)
    document = ngrams.document[: len(values)]
    begins = np.flatnonzero(np.diff(document, prepend=-1))
    if len(begins):
        largest[document[begins]] = np.maximum.reduceat(values, begins)
    return largest


def _first_seen(keys: Hashes) -> Counts:
    """For each key the index where an equal one stands first.

    A table that is written backwards holds the first of the keys that share a slot; those that found another
    key there try again with other slots.
    """
    first = np.empty(len(keys), np.int32)
    todo = np.arange(len(keys), dtype=np.int32)
    while len(todo):
        bits = min(32, len(todo).bit_length() + 1)
        slots = keys >> np.uint32(32 - bits)
        table = np.empty(1 << bits, np.int32)
        table[slots[::-1]] = np.arange(len(todo), dtype=np.int32)[::-1]
        found = table[slots]
        same = keys[found] == keys
        first[todo[same]] = todo[found[same]]
        todo, keys = todo[~same], keys[~same] * _ODD
    return first


def _hash(data: npt.NDArray[np.uint32], starts: Counts, ends: Counts) -> Hashes:
    powers, inverses = _powers(1 << len(data).bit_length())
    sums = np.zeros(len(data) + 1, np.uint32)
    np.cumsum(data * powers[: len(data)], dtype=np.uint32, out=sums[1:])
    return _mix((sums[ends] - sums[starts]) * inverses[starts])


def _mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint32(15))) * _ODD
    return values ^ (values >> np.uint32(13))


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse modulo 2^32."""
    return _series(_BASE, count), _series(pow(_BASE, -1, 1 << 32), count)


def _series(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint32)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint32)


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """Bits of every character up to 0x20000; above lie rare Chinese characters, the table's last entry."""
    from datatrove.utils.text import PUNCTUATION_SET

    table = np.full(0x20001, ALPHABETIC | NO_PUNCTUATION | IDEOGRAPH, np.uint8)
    for point in range(0x20000):
        character = chr(point)
        table[point] = ALPHABETIC * character.isalpha() | NO_PUNCTUATION * (character not in PUNCTUATION_SET)
        if character.isspace():
            table[point] = _SPACE
    for low, high in _IDEOGRAPHS:
        table[low:high] |= IDEOGRAPH
    return table
