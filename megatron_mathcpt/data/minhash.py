"""Find copies of earlier documents: exact by hash, near by MinHash bands and verified signatures.

MinHash: Broder 1997; for corpora, Lee et al. 2022, arXiv 2107.06499. Documents are numbered over all sources
in order of precedence; of a group of duplicates the first is kept.
"""

# Why `Deduplicate` defaults to 14 bands of 8 rows and threshold 0.7: bands and rows are datatrove's. A pair
# of Jaccard similarity J shares a band with probability 1 - (1 - J^8)^14, which rises most steeply near 0.72
# = (1/14)^(1/8): 0.56 at J = 0.7, 0.92 at 0.8, 0.9996 at 0.9. The threshold, on all 112 values, is at the
# same point and rejects less similar pairs that share a band by chance. Of 3,000 planted copies
# (configs/LOG.md) 100 % are found at J >= 0.9, 98 % at 0.8 to 0.9, 71 % at 0.7 to 0.8. Shingles keep numbers
# and operators: folding numbers, as web pipelines do, made datatrove drop 153 of 757 generated problems.

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.words import Hashes, Indices, Words, jit, mix, span_hash

Signatures = npt.NDArray[np.uint32]
TakeRows = Callable[[Indices], Signatures]
Blocks = Callable[[], Iterable[Hashes]]  # of one value per document, in order, from the beginning
KEPT, EXACT, NEAR = 0, 2, 3  # 1 is the second split: a verdict becomes a decision (data/publish.py)
_PAIRS = 1 << 15  # compared at once: 29 MB of signatures
BLOCK = 1 << 18  # documents processed together
DUPLICATES = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}


def signatures(words: Words, shingle_words: int, values: int) -> Signatures:
    """A row of `values` minima per document; one shorter than a shingle counts as a single shingle."""
    return _minima(words.hashes, words.documents, shingle_words, *_permutations(values))


@lru_cache(maxsize=1)
def _permutations(values: int) -> tuple[Signatures, Signatures]:
    # A fixed seed, so that builds are reproducible; odd factors, so that no bit is lost modulo 2^32.
    random = np.random.Generator(np.random.PCG64(2107_06499))
    factors = random.integers(0, 1 << 32, values, dtype=np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, values, dtype=np.uint32)


@jit
def _minima(
    hashes: Hashes, documents: Indices, length: int, factors: Signatures, offsets: Signatures
) -> Signatures:
    rows = np.full((len(documents) - 1, len(factors)), np.uint32(0xFFFFFFFF))
    for document in range(len(rows)):
        row, last = rows[document], documents[document + 1]
        for first in range(documents[document], max(last - length, documents[document]) + 1):
            shingle = np.uint32(span_hash(hashes, first, min(first + length, last)) >> np.uint64(32))
            for value in range(len(factors)):
                row[value] = min(row[value], np.uint32((shingle ^ offsets[value]) * factors[value]))
    return rows


def band_keys(rows: Signatures, bands: int) -> Hashes:
    """A row per band with a 64-bit key per document; equal keys mean equal values in that band."""
    values = rows.reshape(len(rows), bands, rows.shape[1] // bands)  # of no documents, too
    keys = np.zeros((bands, len(rows)), np.uint64)
    for column in range(values.shape[2]):
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + values[:, :, column].T)
    return keys


def memory_bytes(documents: int, values: int) -> int:
    """What `find_duplicates` allocates for so many documents with signatures of so many values."""
    # Compiled first, so that this is no part of it.
    two, row = np.zeros(2, np.uint64), np.zeros((2, 1), np.uint32)
    find_duplicates(2, lambda: [two], lambda: [two], [lambda: [two]], row.__getitem__, 0)
    compared = min(documents, _PAIRS) * values * (4 + 4 + 1)  # two signatures, and where they agree
    return documents * (8 + 12 + 4 + 1) + min(documents, BLOCK) * 64 + compared


def find_duplicates(
    documents: int, whole: Blocks, numbers: Blocks, bands: Iterable[Blocks], rows: TakeRows, threshold: float
) -> tuple[npt.NDArray[np.uint8], Signatures]:
    """KEPT, EXACT or NEAR for every document, and the document that is kept in its place.

    `whole` are hashes of all words. `numbers` is 0 for text, else a hash of the numbers: only documents with
    equal ones can be near duplicates of each other. `bands` are the keys of each band. Blocks of all these
    are read in order, of the signatures only the `rows` that are compared.
    """
    assert documents < 1 << 32
    firsts = np.arange(documents, dtype=np.uint32)  # the union-find's parents
    keys, copies = np.empty(documents, np.uint64), np.zeros(documents, np.uint8)
    slots = np.empty(documents + documents // 2 + 1, np.uint64)
    for band, blocks in enumerate((whole, *bands)):
        slots.fill(0)
        high = 0
        for block, salt in zip(blocks(), numbers(), strict=True):
            low, high = high, high + len(block)
            keys[low:high] = block ^ mix(salt) if band else block
            heads = _heads(keys, low, high, slots)
            right = np.flatnonzero(heads >= 0)
            left, right = heads[right], right + low
            if not band:
                copies[right] = 1
            else:
                apart = _roots(firsts, left) != _roots(firsts, right)  # other pairs would change nothing
                left, right = left[apart], right[apart]
                parts = [slice(begin, begin + _PAIRS) for begin in range(0, len(left), _PAIRS)]
                # The share of equal values in two signatures estimates their Jaccard similarity.
                shares = [(rows(left[part]) == rows(right[part])).mean(axis=1) for part in parts]
                agree = np.concatenate([[], *shares]) >= threshold
                left, right = left[agree], right[agree]
            _join(firsts, left, right)
    _conclude(firsts, copies)
    return copies, firsts


@jit
def _heads(keys: Hashes, low: int, high: int, slots: Hashes) -> Indices:
    """For documents `low` to `high` the first one with an equal key, or -1 if that is the document itself."""
    # `slots` is a hash table of the documents before: number + 1, and 32 bits of the key.
    heads, size = np.full(high - low, -1), np.uint64(len(slots))
    number, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for document in range(low, high):
        key = keys[document]
        tag = key << shift
        slot = ((key * np.uint64(0x9E3779B97F4A7C15)) >> shift) * size >> shift
        while slots[slot]:
            other = np.int64(slots[slot] & number) - 1
            if slots[slot] & ~number == tag and keys[other] == key:
                heads[document - low] = other
                break
            slot = slot + np.uint64(1) if slot + np.uint64(1) < size else np.uint64(0)
        else:
            slots[slot] = tag | np.uint64(document + 1)
    return heads


@jit
def _root(firsts: Signatures, document: int) -> int:
    while firsts[document] != document:
        firsts[document] = firsts[firsts[document]]
        document = firsts[document]
    return document


@jit
def _roots(firsts: Signatures, documents: Indices) -> Indices:
    return np.array([_root(firsts, document) for document in documents], np.int64)


@jit
def _join(firsts: Signatures, left: Indices, right: Indices) -> None:
    for pair in range(len(left)):
        one, other = _root(firsts, left[pair]), _root(firsts, right[pair])
        firsts[max(one, other)] = min(one, other)  # never above the document itself


@jit
def _conclude(firsts: Signatures, verdicts: npt.NDArray[np.uint8]) -> None:
    """Make `firsts` the first document of each one's group, and `verdicts`, which has 1 for exact copies."""
    for document in range(len(firsts)):
        firsts[document] = firsts[firsts[document]]
        copy = NEAR if firsts[document] != document else KEPT
        verdicts[document] = EXACT if verdicts[document] else copy  # an exact copy may also be near to others
