"""Words of many documents as flat arrays of 64-bit hashes, without a Python object per word.

The one word cutter of deduplication and decontamination. Text is folded first (NFKC, lower case), so case
and full-width forms do not matter. A word is a run of letters or a run of digits; a Chinese or Japanese
character and a symbol (operator, punctuation) each stand alone. Hashes are built from 8 bytes at a time;
an n-gram's hash comes from prefix sums, so its cost does not depend on n.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

SPACE, LETTERS, DIGITS, IDEOGRAPH, SYMBOL = range(5)
BATCH_CHARACTERS = 1 << 19  # texts hashed at once: temporary arrays stay in the processor's cache

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64
_LOW_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)


@dataclass(frozen=True)
class Words:
    """Words of `len(documents) - 1` documents; document i holds words `documents[i]` to `documents[i + 1]`.

    `kinds` are LETTERS, DIGITS, IDEOGRAPH or SYMBOL; `lines` are the numbers of the words that begin a line.
    """

    hashes: Hashes
    kinds: npt.NDArray[np.uint8]
    documents: Indices
    lines: Indices
    starts: Indices
    ends: Indices
    folded: bytes

    def select(self, keep: npt.NDArray[np.bool_]) -> "Words":
        """Only the words where `keep` is true."""
        before = np.concatenate(([0], np.cumsum(keep)))
        return Words(
            self.hashes[keep],
            self.kinds[keep],
            before[self.documents],
            np.unique(before[self.lines]),
            self.starts[keep],
            self.ends[keep],
            self.folded,
        )

    def text(self, first: int, last: int) -> str:
        """Folded text from word `first` up to, not including, word `last`."""
        return self.folded[int(self.starts[first]) : int(self.ends[last - 1])].decode("utf-8", "replace")


def fold(text: str) -> bytes:
    """UTF-8 of `text` without differences of case and compatibility form; lone surrogates become `?`."""
    if not text.isascii():  # a line at a time: most are ASCII, and nothing folds over the end of a line
        text = "\n".join(line if line.isascii() else _fold_line(line) for line in text.split("\n"))
    return text.encode("utf-8", "replace").lower()


def _fold_line(line: str) -> str:
    if not unicodedata.is_normalized("NFKC", line):  # telling is cheaper than doing
        line = unicodedata.normalize("NFKC", line)
    return line.lower().replace("’", "'")


def cut_words(texts: Sequence[str]) -> Words:
    """The words of `texts`, which should hold about `BATCH_CHARACTERS` in all."""
    parts = [fold(text) for text in texts]
    folded = _join_numbers(b"\0".join(parts))
    offsets = np.flatnonzero(np.frombuffer(b"\0" + folded, np.uint8) == 0) if parts else np.zeros(1, np.int64)
    if len(offsets) != max(len(parts), 1):  # a text holds NUL itself
        return cut_words([text.replace("\0", " ") for text in texts])
    data = np.frombuffer(folded + b"\0" * 8, np.uint8)
    classes, single = _classes(data)
    bounds = np.flatnonzero((classes[1:] != classes[:-1]) | single[1:]) + 1
    bounds = np.concatenate(([0], bounds)) if classes[0] else bounds
    kinds = classes[bounds]
    spans = np.append(bounds, len(data))
    keep = kinds != SPACE
    starts, ends = bounds[keep], spans[1:][keep]
    documents = np.append(np.searchsorted(starts, offsets), len(starts))
    newlines = np.searchsorted(starts, np.flatnonzero(data == 10))
    lines = np.unique(np.concatenate((documents[:-1], newlines)))
    return Words(
        _hash(data, starts, ends), kinds[keep], documents, lines[lines < len(starts)], starts, ends, folded
    )


def ngrams(words: Words, length: int) -> tuple[Hashes, Indices]:
    """Hashes of all n-grams of `length` words that stay within a document, and their first words."""
    count = len(words.hashes) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    inside = np.ones(count, np.bool_)
    for offset in range(1, length):
        ends = words.documents[1:-1] - offset
        inside[ends[(ends >= 0) & (ends < count)]] = False
    first = np.flatnonzero(inside)
    return spans(words, first, first + length), first


def spans(words: Words, first: Indices, last: Indices, sums: Hashes | None = None) -> Hashes:
    """Hash of the words `first[i]` up to, not including, `last[i]`, for every i; `sums` of `prefix_sums`."""
    inverses = _powers(1 << len(words.hashes).bit_length())[1]
    sums = prefix_sums(words) if sums is None else sums
    return mix((sums[last] - sums[first]) * inverses[first])


def prefix_sums(words: Words) -> Hashes:
    """What `spans` needs of the words; worth keeping for several calls."""
    powers = _powers(1 << len(words.hashes).bit_length())[0]
    sums = np.zeros(len(words.hashes) + 1, np.uint64)
    np.cumsum(words.hashes * powers[: len(words.hashes)], out=sums[1:])
    return sums


def mix(values: Hashes) -> Hashes:
    """Spread the bits of `values` (second half of splitmix64)."""
    mixed = (values ^ (values >> np.uint64(30))) * _MIX
    return mixed ^ (mixed >> np.uint64(31))


def _join_numbers(folded: bytes) -> bytes:
    """Without apostrophes inside words and commas inside numbers: `janet's` = `janets`, `1,000` = `1000`."""
    data = np.frombuffer(folded, np.uint8)
    marks = np.flatnonzero((data == 39) | (data == 44))
    marks = marks[(marks > 0) & (marks < len(data) - 1)]
    before, mark, after = data[marks - 1], data[marks], data[marks + 1]
    digits = (before - 48 < 10) & (after - 48 < 10) & (mark == 44)
    letters = (before - 97 < 26) & (after - 97 < 26) & (mark == 39)
    inner = marks[digits | letters]
    return np.delete(data, inner).tobytes() if len(inner) else folded


def _classes(data: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Class of every byte, and whether the byte begins a word of one character."""
    table = _character_classes()
    classes = table[:256].take(data)
    leads = np.flatnonzero(data >= 0xC0)
    if len(leads):
        points = _code_points(data, leads)
        found = table[np.minimum(points, len(table) - 1)]
        continuation = data & 0xC0 == 0x80
        for offset in range(4):
            at = leads + offset
            here = np.ones(len(leads), np.bool_) if offset == 0 else continuation[at]
            leads, found, at = leads[here], found[here], at[here]
            classes[at] = found
        single = (classes >= IDEOGRAPH) & ~continuation
    else:
        single = classes >= IDEOGRAPH
    return classes, single


def _code_points(data: npt.NDArray[np.uint8], leads: Indices) -> Indices:
    """Code points of the UTF-8 sequences that begin at `leads`."""
    first, second, third, fourth = (data[leads + i].astype(np.int64) for i in range(4))
    low2, low3, low4 = second & 0x3F, third & 0x3F, fourth & 0x3F
    return np.where(
        first < 0xE0,
        (first & 0x1F) << 6 | low2,
        np.where(
            first < 0xF0,
            (first & 0x0F) << 12 | low2 << 6 | low3,
            (first & 0x07) << 18 | low2 << 12 | low3 << 6 | low4,
        ),
    )


def _hash(data: npt.NDArray[np.uint8], starts: Indices, ends: Indices) -> Hashes:
    loads = np.ndarray((len(data) - 7,), "<u8", buffer=data, strides=(1,))
    lengths = ends - starts
    hashes = mix((loads[starts] & _LOW_BYTES[np.minimum(lengths, 8)]) + np.uint64(_BASE))
    longer = np.flatnonzero(lengths > 8)
    offset = 8
    while len(longer):
        rest = np.minimum(lengths[longer] - offset, 8)
        block = loads[starts[longer] + offset] & _LOW_BYTES[rest]
        hashes[longer] = mix(hashes[longer] * np.uint64(_BASE) + block)
        offset += 8
        longer = longer[lengths[longer] > offset]
    return hashes


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse modulo 2^64."""
    return _series(_BASE, count), _series(pow(_BASE, -1, 1 << 64), count)


def _series(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


@lru_cache(maxsize=1)
def _character_classes() -> npt.NDArray[np.uint8]:
    """Class by code point up to 0x1FFFF; above lie rare Chinese characters, classed like the last entry."""
    table = np.full(0x20001, IDEOGRAPH, np.uint8)
    for point in range(0x20000):
        category = unicodedata.category(chr(point))
        table[point] = {"L": LETTERS, "M": LETTERS, "N": LETTERS, "P": SYMBOL, "S": SYMBOL}.get(
            category[0], SPACE
        )
        if category == "Nd":
            table[point] = DIGITS
    for low, high in (
        (0x3005, 0x3008),
        (0x3041, 0x3100),
        (0x3400, 0x4DC0),
        (0x4E00, 0xA000),
        (0xF900, 0xFB00),
    ):
        table[low:high] = IDEOGRAPH
    return table
