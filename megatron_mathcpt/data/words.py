"""Words of many documents as flat arrays of 64-bit hashes, without a Python object per word.

`cut_words` serves deduplication and decontamination. Characters are folded first (NFKC, lower case), so case
and full-width forms do not matter. A word is a run of letters or of digits, or one Chinese or Japanese
character, or one symbol (operator, punctuation). `split_words` serves the rules for web pages, which are
defined on words as written. Numba compiles on the first call and caches in `__pycache__` or in the user's
cache; where neither is writable, set NUMBA_CACHE_DIR.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from datatrove.utils.text import PUNCTUATION_SET
from numba import njit

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Kinds = npt.NDArray[np.uint8]
Points = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]
Item = TypeVar("Item")
Function = TypeVar("Function", bound=Callable[..., object])

SPACE, LETTERS, DIGITS, IDEOGRAPH, SYMBOL = range(5)  # kinds of words of `cut_words`
HAS_LETTER, NOT_PUNCTUATION, HAS_IDEOGRAPH = 1, 2, 4  # bits of the kinds of words of `split_words`
MAX_WORD = 2_000_000  # a Chinese text without any line break is ordinary, one of this size is not
MAX_MARKS = 2000
BATCH_CHARACTERS = 1 << 19  # cut at once, so that temporary arrays stay in the processor's cache

_LONG_WORD = re.compile(rf"(?<!\S)\S{{{MAX_WORD}}}|(?<!\s)\s{{{MAX_WORD}}}")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so no factor of it is lost modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64
_COMMA, _APOSTROPHE, _LINE_FEED = 44, 39, 10
# Kana, Chinese characters and their compatibility forms: scripts without spaces between words.
_SPACELESS = ((0x3041, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
_REPEATED = (0x3005, 0x3008)  # marks that repeat a Chinese character
_ALL = np.ones(1, np.bool_)
_TABLE = 0x20000  # entry of all code points above: rare Chinese characters, which have no folding


@dataclass(frozen=True)
class Words:
    """Words of many documents as columns, with one entry per word unless noted."""

    hashes: Hashes
    kinds: Kinds  # LETTERS, DIGITS, IDEOGRAPH or SYMBOL; bits if words are cut at spaces
    documents: Indices  # document i has words `documents[i]` to `documents[i + 1]`
    lines: Indices  # the numbers of the words that begin a line
    starts: Indices  # in `codes`, as `ends`
    ends: Indices
    codes: Codes  # the folded characters of all texts, concatenated

    def select(self, keep: Flags) -> "Words":
        """Only the words where `keep` is true; lines without any disappear."""
        kept = np.flatnonzero(keep)
        documents = np.searchsorted(kept, self.documents)
        begins = np.searchsorted(kept, np.append(self.lines, len(keep)))
        lines = begins[:-1][begins[:-1] < begins[1:]]
        columns = (self.hashes.take(kept), self.kinds.take(kept), documents, lines)
        return Words(*columns, self.starts.take(kept), self.ends.take(kept), self.codes)

    def document_hashes(self) -> Hashes:
        """A hash of each document's words: equal up to case, spacing and compatibility forms."""
        return self.span_hashes(self.documents[:-1], self.documents[1:])

    def span_hashes(self, first: Indices, last: Indices) -> Hashes:
        """`span_hash` of words `first[i]` to `last[i]`, exclusive, for every i."""
        return _span_hashes(self.hashes, first, last)

    def ngrams(self, length: int, wanted: Flags = _ALL) -> tuple[Hashes, Indices]:
        """Hashes and first words of the n-grams of `length` words inside documents, those `wanted` flags."""
        # These are 2^n flags, for the last n bits of a hash.
        return _ngrams(self.hashes, self.documents, length, wanted)

    def text(self, first: int, last: int) -> str:
        """Folded text of words `first` to `last`, exclusive."""
        return "".join(map(chr, self.codes[self.starts[first] : self.ends[last - 1]]))


def cut_words(texts: Sequence[str]) -> Words:
    """Cut `texts`, best about `BATCH_CHARACTERS` in total; lone surrogates become `?`."""
    composed = list(map(compose, texts))
    offsets = np.cumsum([0, *map(len, composed)], dtype=np.int64)
    points = np.frombuffer("".join(composed).encode("utf-32-le", "replace"), np.uint32)
    folds, sequences, classes = _tables()
    codes, begins = _fold(points, offsets, folds, sequences)
    kinds, documents, lines, starts, ends = _cut(codes, begins, classes)
    return Words(_hash(codes, starts, ends, True), kinds, documents, lines, starts, ends, codes)


def split_words(texts: Sequence[str]) -> Words:
    """Cut `texts` as `str.split` does, without folding, with kinds as bits."""
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), np.int32)
    classes, bits = _space_tables()
    _, documents, lines, starts, ends = _cut(codes, offsets, classes)
    kinds = np.bitwise_or.reduceat(bits[np.minimum(codes, _TABLE)], starts)  # spaces have no bits
    return Words(_hash(codes, starts, ends, False), kinds, documents, lines, starts, ends, codes)


def batches(items: Sequence[Item], sizes: Sequence[int]) -> Iterator[Sequence[Item]]:
    """Split `items` into batches of about `BATCH_CHARACTERS` characters of text; `sizes` has each one's."""
    begin, filled = 0, 0
    for end, size in enumerate(sizes, 1):
        filled += size
        if filled >= BATCH_CHARACTERS or end == len(sizes):
            yield items[begin:end]
            begin, filled = end, 0


def compose(text: str) -> str:
    """`text` in Unicode's form NFC; as it is if it has more than `MAX_MARKS` combining marks in a row."""
    if len(text) > MAX_MARKS and not text.isascii():  # sorting marks takes the square of their number
        points = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
        others = np.flatnonzero(~_marks()[np.minimum(points, _TABLE)])
        if np.diff(others, prepend=-1, append=len(points)).max() > MAX_MARKS + 1:
            return text
    return unicodedata.normalize("NFC", text)


def has_long_word(text: str) -> bool:
    """Whether `text` has `MAX_WORD` characters in a row that are no white space, or all are."""
    return len(text) >= MAX_WORD and _LONG_WORD.search(text) is not None


def count_words(words: Words) -> Indices:
    """Counts per document of words split at spaces: all, those that are not all punctuation and their
    characters, those with a letter; characters of all, and of words with a Chinese one."""
    lengths, plain = words.ends - words.starts, words.kinds & NOT_PUNCTUATION > 0
    letters, chinese = words.kinds & HAS_LETTER > 0, words.kinds & HAS_IDEOGRAPH > 0
    columns = np.stack((lengths > 0, plain, lengths * plain, letters, lengths, lengths * chinese))
    sums = np.zeros((len(columns), len(lengths) + 1), np.int64)
    np.cumsum(columns, axis=1, out=sums[:, 1:])
    return np.diff(sums[:, words.documents]).T


def mix(values: Hashes) -> Hashes:
    """Spread the bits of `values` (second half of splitmix64)."""
    mixed = (values ^ (values >> np.uint64(30))) * _MIX
    return mixed ^ (mixed >> np.uint64(31))


def jit(function: Function) -> Function:
    return cast(Function, njit(cache=True)(function))


_mix = cast(Callable[[np.uint64], np.uint64], jit(mix))


@jit
def _fold(points: Points, offsets: Indices, folds: Codes, sequences: Codes) -> tuple[Codes, Indices]:
    room = len(points)  # and more, as a folding may have several characters
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


@jit
def _cut(codes: Codes, begins: Indices, classes: Kinds) -> tuple[Kinds, Indices, Indices, Indices, Indices]:
    kinds, documents = np.empty(len(codes), np.uint8), np.empty_like(begins)
    lines, starts, ends = np.empty((3, len(codes)), np.int64)
    count, line_count = 0, 0
    for document in range(len(begins) - 1):
        documents[document] = count
        line_begins, kind, last = True, np.uint8(SPACE), begins[document + 1]
        for place in range(begins[document], last):
            code = codes[place]
            found = classes[min(code, _TABLE)]
            if found == SYMBOL and _joins(codes[:last], place, kind):
                continue  # inside a word, which does not end
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


@jit
def _joins(codes: Codes, place: int, kind: np.uint8) -> bool:
    """Whether a comma is inside a number, or an apostrophe inside a word: `1,000` is `1000`."""
    code = codes[place]
    if kind in (SPACE, SYMBOL) or place + 1 == len(codes) or code not in (_COMMA, _APOSTROPHE):
        return False
    first, last = (48, 57) if code == _COMMA else (97, 122)
    return bool(first <= codes[place - 1] <= last and first <= codes[place + 1] <= last)


@jit
def _hash(codes: Codes, starts: Indices, ends: Indices, joined: bool) -> Hashes:
    """Hashes of the words' UTF-8, eight bytes at a time; if `joined`, without what `_joins` let in."""
    hashes = np.empty(len(starts), np.uint64)
    for word in range(len(starts)):
        value, block, filled = _BASE, np.uint64(0), 0
        for place in range(starts[word], ends[word]):
            code = codes[place]
            if joined and code in (_COMMA, _APOSTROPHE) and ends[word] - starts[word] > 1:
                continue
            length = 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
            for later in range(length - 1, -1, -1):
                if filled == 8:
                    value, block, filled = _mix(value + block) * _BASE, np.uint64(0), 0
                block |= np.uint64(_utf8_byte(code, later, length)) << np.uint64(8 * filled)
                filled += 1
        hashes[word] = _mix(value + block)
    return hashes


@jit
def _utf8_byte(code: int, later: int, length: int) -> int:
    """The byte followed by `later` others in the UTF-8 of `code` (RFC 3629), `length` bytes long."""
    if length == 1:
        return code
    bits = code >> 6 * later
    return bits | 0xF00 >> length & 0xFF if later == length - 1 else bits & 0x3F | 0x80


@jit
def span_hash(hashes: Hashes, first: int, last: int) -> np.uint64:
    """Hash of words `first` to `last`, exclusive, independent of their position."""
    # A polynomial in `_BASE` modulo 2^64: `_ngrams` moves one word along in two multiplications.
    value, power = np.uint64(0), np.uint64(1)
    for word in range(first, last):
        value += hashes[word] * power
        power *= _BASE
    return _mix(value)


@jit
def _span_hashes(hashes: Hashes, first: Indices, last: Indices) -> Hashes:
    found = np.empty(len(first), np.uint64)
    for number in range(len(first)):
        found[number] = span_hash(hashes, first[number], last[number])
    return found


@jit
def _ngrams(hashes: Hashes, documents: Indices, length: int, wanted: Flags) -> tuple[Hashes, Indices]:
    found, firsts = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.int64)
    last_power, bits, count = np.uint64(1), np.uint64(len(wanted) - 1), 0
    for _ in range(length - 1):
        last_power *= _BASE
    for document in range(len(documents) - 1):
        value, power = np.uint64(0), np.uint64(1)
        for word in range(documents[document], documents[document + 1]):
            first = word - length + 1
            if first <= documents[document]:  # up to and including the document's first n-gram
                value += hashes[word] * power
                power *= _BASE
            else:  # `span_hash` of the previous n-gram without its first word and with one more
                value = (value - hashes[first - 1]) * _INVERSE + hashes[word] * last_power
            if first >= documents[document]:
                found[count], firsts[count] = _mix(value), first
                count += wanted[found[count] & bits]
    return found[:count], firsts[:count]


@lru_cache(maxsize=1)
def _tables() -> tuple[Codes, Codes, Kinds]:
    """By code point: its folding, or minus its index among the sequences (length first); its kind."""
    folds = np.empty(_TABLE, np.int32)
    classes = np.full(_TABLE + 1, IDEOGRAPH, np.uint8)
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
    for low, high in (*_SPACELESS, _REPEATED):
        classes[low:high] = IDEOGRAPH
    return folds, np.array(sequences, np.int32), classes


@lru_cache(maxsize=1)
def _marks() -> Flags:
    """By code point: whether it combines with the one before."""
    return np.array([unicodedata.combining(chr(point)) > 0 for point in range(_TABLE)] + [False])


@lru_cache(maxsize=1)
def _space_tables() -> tuple[Kinds, Kinds]:
    """By code point: SPACE or LETTERS, and the bits."""
    bits = np.full(_TABLE + 1, HAS_LETTER | NOT_PUNCTUATION | HAS_IDEOGRAPH, np.uint8)
    bits[:_TABLE] = [HAS_LETTER * chr(point).isalpha() | NOT_PUNCTUATION for point in range(_TABLE)]
    bits[[*map(ord, PUNCTUATION_SET)]] &= ~np.uint8(NOT_PUNCTUATION)
    for low, high in _SPACELESS:
        bits[low:high] |= HAS_IDEOGRAPH
    spaces = [point for point in range(_TABLE) if chr(point).isspace()]
    classes = np.full(_TABLE + 1, LETTERS, np.uint8)
    classes[spaces], bits[spaces] = SPACE, 0
    return classes, bits
