"""Words of many documents as flat arrays of 64-bit hashes, without a Python object per word.

The one word cutter of deduplication and decontamination. Characters are folded first (NFKC, lower case), so
case and full-width forms do not matter. A word is a run of letters or a run of digits; a Chinese or Japanese
character and a symbol (operator, punctuation) each stand alone. The loops over characters are compiled by
numba when first called, and kept beside this file or in the user's cache; where neither can be written, the
environment must name another folder, NUMBA_CACHE_DIR.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Kinds = npt.NDArray[np.uint8]
Points = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

SPACE, LETTERS, DIGITS, IDEOGRAPH, SYMBOL = range(5)
BATCH_CHARACTERS = 1 << 19  # texts cut at once: temporary arrays stay in the processor's cache

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so no factor of it is lost modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64
_COMMA, _APOSTROPHE, _LINE_FEED = 44, 39, 10
_IDEOGRAPHS = ((0x3005, 0x3008), (0x3041, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
_TABLE = 0x20000  # code points above are rare Chinese characters, which nothing folds


@dataclass(frozen=True)
class Words:
    """Words of `len(documents) - 1` documents; document i holds words `documents[i]` to `documents[i + 1]`.

    `kinds` are LETTERS, DIGITS, IDEOGRAPH or SYMBOL; `lines` are the numbers of the words that begin a line.
    `starts` and `ends` are places in `codes`, the folded characters of all texts one after another.
    """

    hashes: Hashes
    kinds: Kinds
    documents: Indices
    lines: Indices
    starts: Indices
    ends: Indices
    codes: Codes

    def select(self, keep: Flags) -> "Words":
        """Only the words where `keep` is true."""
        kept, documents, lines = _select(keep, self.documents, self.lines)
        hashes, kinds, starts, ends = (
            part.take(kept) for part in (self.hashes, self.kinds, self.starts, self.ends)
        )
        return Words(hashes, kinds, documents, lines, starts, ends, self.codes)

    def text(self, first: int, last: int) -> str:
        """Folded text from word `first` up to, not including, word `last`."""
        return "".join(map(chr, self.codes[self.starts[first] : self.ends[last - 1]]))


def cut_words(texts: Sequence[str]) -> Words:
    """The words of `texts`, which should hold about `BATCH_CHARACTERS` in all; lone surrogates become `?`."""
    composed = [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in composed], out=offsets[1:])
    points = np.frombuffer("".join(composed).encode("utf-32-le", "replace"), np.uint32)
    folds, sequences, classes = _tables()
    codes, begins = _fold(points, offsets, folds, sequences)
    kinds, documents, lines, starts, ends = _cut(codes, begins, classes)
    return Words(_hash(codes, starts, ends), kinds, documents, lines, starts, ends, codes)


def ngrams(words: Words, length: int, wanted: Flags | None = None) -> tuple[Hashes, Indices]:
    """Hashes of all n-grams of `length` words that stay within a document, and their first words.

    With `wanted`, 2^n flags, only those whose hash has a flag at its first n bits.
    """
    flags = np.ones(1, np.bool_) if wanted is None else wanted
    hashes, first = _ngrams(words.hashes, words.documents, length, flags)
    return hashes, first


def spans(words: Words, first: Indices, last: Indices) -> Hashes:
    """Hash of the words `first[i]` up to, not including, `last[i]`, for every i."""
    hashes: Hashes = _spans(words.hashes, first, last)
    return hashes


def mix(values: Hashes) -> Hashes:
    """Spread the bits of `values` (second half of splitmix64)."""
    mixed = (values ^ (values >> np.uint64(30))) * _MIX
    return mixed ^ (mixed >> np.uint64(31))


compiled = njit(cache=True)  # numba's loops, in machine code
_mix = compiled(mix)


@compiled
def _fold(points: Points, offsets: Indices, folds: Codes, sequences: Codes) -> tuple[Codes, Indices]:
    """Folded characters, and where each document begins among them."""
    room = len(points)
    for point in points:
        if point >= 0x80 and point < _TABLE and folds[point] < 0:
            room += sequences[-folds[point]]
    codes, begins = np.empty(room, np.int32), np.empty_like(offsets)
    count = 0
    for document in range(len(offsets) - 1):
        begins[document] = count
        for point in points[offsets[document] : offsets[document + 1]]:
            fold = folds[point] if point < _TABLE else np.int32(point)
            if fold >= 0:
                codes[count] = fold
                count += 1
                continue
            for character in sequences[1 - fold : 1 - fold + sequences[-fold]]:
                codes[count] = character
                count += 1
    begins[-1] = count
    return codes[:count], begins


@compiled
def _cut(codes: Codes, begins: Indices, classes: Kinds) -> tuple[Kinds, Indices, Indices, Indices, Indices]:
    """What `Words` holds: kinds, documents, lines, starts, ends."""
    room = len(codes)
    kinds, lines = np.empty(room, np.uint8), np.empty(room, np.int64)
    starts, ends, documents = np.empty(room, np.int64), np.empty(room, np.int64), np.empty_like(begins)
    count, line_count = 0, 0
    for document in range(len(begins) - 1):
        documents[document] = count
        line_begins, kind, last = True, np.uint8(SPACE), begins[document + 1]
        for place in range(begins[document], last):
            code = codes[place]
            found = classes[code] if code < _TABLE else np.uint8(IDEOGRAPH)
            if found == SYMBOL and _joins(codes[:last], place, kind):
                continue
            line_begins |= code == _LINE_FEED
            if found != SPACE:
                if found != kind or found >= IDEOGRAPH:
                    kinds[count], starts[count] = found, place
                    if line_begins:
                        lines[line_count] = count
                        line_count += 1
                        line_begins = False
                    count += 1
                ends[count - 1] = place + 1
            kind = found
    documents[-1] = count
    return kinds[:count], documents, lines[:line_count], starts[:count], ends[:count]


@compiled
def _joins(codes: Codes, place: int, kind: int) -> bool:
    """Whether a comma stands inside a number, or an apostrophe inside a word: `1,000` is `1000`."""
    code = codes[place]
    if kind in (SPACE, SYMBOL) or place + 1 == len(codes) or code not in (_COMMA, _APOSTROPHE):
        return False
    first, last = (48, 57) if code == _COMMA else (97, 122)
    return bool(first <= codes[place - 1] <= last and first <= codes[place + 1] <= last)


@compiled
def _hash(codes: Codes, starts: Indices, ends: Indices) -> Hashes:
    """Hashes of the words' UTF-8, eight bytes at a time."""
    hashes = np.empty(len(starts), np.uint64)
    for word in range(len(starts)):
        value, block, filled = _BASE, np.uint64(0), 0
        for place in range(starts[word], ends[word]):
            code = codes[place]
            if code in (_COMMA, _APOSTROPHE) and ends[word] - starts[word] > 1:
                continue  # it joins what stands around it
            length = 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
            for later in range(length - 1, -1, -1):
                if filled == 8:
                    value, block, filled = _mix(value + block) * _BASE, np.uint64(0), 0
                block |= np.uint64(_utf8_byte(code, later, length)) << np.uint64(8 * filled)
                filled += 1
        hashes[word] = _mix(value + block)
    return hashes


@compiled
def _utf8_byte(code: int, later: int, length: int) -> int:
    """The byte of `code` with `later` others behind it, of its `length` in UTF-8 (RFC 3629)."""
    if length == 1:
        return code
    bits = code >> 6 * later
    return bits | 0xF00 >> length & 0xFF if later == length - 1 else bits & 0x3F | 0x80


@compiled
def span_hash(hashes: Hashes, first: int, last: int) -> np.uint64:
    """Hash of the words `first` up to, not including, `last`; does not depend on where they stand."""
    value, power = np.uint64(0), np.uint64(1)
    for word in range(first, last):
        value += hashes[word] * power
        power *= _BASE
    mixed: np.uint64 = _mix(value)
    return mixed


@compiled
def _spans(hashes: Hashes, first: Indices, last: Indices) -> Hashes:
    found = np.empty(len(first), np.uint64)
    for number in range(len(first)):
        found[number] = span_hash(hashes, first[number], last[number])
    return found


@compiled
def _ngrams(hashes: Hashes, documents: Indices, length: int, wanted: Flags) -> tuple[Hashes, Indices]:
    found = np.empty(len(hashes), np.uint64)
    firsts = np.empty(len(hashes), np.int64)
    last_power, bits, count = np.uint64(1), 0, 0
    for _ in range(length - 1):
        last_power *= _BASE
    while 1 << bits < len(wanted):
        bits += 1
    for document in range(len(documents) - 1):
        value, power = np.uint64(0), np.uint64(1)
        for word in range(documents[document], documents[document + 1]):
            first = word - length + 1
            if first <= documents[document]:  # the first n-gram is not whole before now
                value += hashes[word] * power
                power *= _BASE
            else:  # as `span_hash` of the n-gram before, without its first word and with one more
                value = (value - hashes[first - 1]) * _INVERSE + hashes[word] * last_power
            if first >= documents[document]:
                found[count], firsts[count] = _mix(value), first
                # A shift by 64 bits is undefined.
                count += wanted[found[count] >> np.uint64(64 - bits) if bits else np.uint64(0)]
    return found[:count], firsts[:count]


@compiled
def _select(keep: Flags, documents: Indices, lines: Indices) -> tuple[Indices, Indices, Indices]:
    """The words that stay, the first of every document among them, and those that begin a line."""
    before, kept = np.empty(len(keep) + 1, np.int64), np.empty(len(keep), np.int64)
    count = 0
    for word in range(len(keep)):
        before[word] = count
        kept[count] = word
        count += keep[word]
    before[-1] = count
    firsts, line_count = np.empty(len(lines), np.int64), 0
    for line in lines:  # where a line has no word left, the next line's first word stands once
        if before[line] < count and (line_count == 0 or firsts[line_count - 1] != before[line]):
            firsts[line_count] = before[line]
            line_count += 1
    return kept[:count], before[documents], firsts[:line_count]


@lru_cache(maxsize=1)
def _tables() -> tuple[Codes, Codes, Kinds]:
    """By code point: the folded one, or minus its place among the sequences (length first); the class."""
    folds = np.empty(_TABLE, np.int32)
    classes = np.empty(_TABLE, np.uint8)
    sequences = [0]
    by_category = {"L": LETTERS, "M": LETTERS, "N": LETTERS, "P": SYMBOL, "S": SYMBOL, "Nd": DIGITS}
    for point in range(_TABLE):
        character = chr(point)
        folded = unicodedata.normalize("NFKC", character).lower().replace("\u2019", "'")
        folds[point] = ord(folded) if len(folded) == 1 else -len(sequences)
        if len(folded) > 1:
            sequences += [len(folded), *map(ord, folded)]
        category = unicodedata.category(character)
        classes[point] = by_category.get(category, by_category.get(category[0], SPACE))
    for low, high in _IDEOGRAPHS:
        classes[low:high] = IDEOGRAPH
    return folds, np.array(sequences, np.int32), classes
