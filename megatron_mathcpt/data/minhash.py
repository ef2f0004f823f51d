"""Which documents are copies of earlier ones: exact by hash, near by MinHash bands and verified signatures.

MinHash: Broder 1997; for corpora, Lee et al. 2022, arXiv 2107.06499. Shingles keep numbers and operators:
folding them, as web pipelines do, would make all problems of one template alike. Documents are numbered in
keep order over all sources; of a group of duplicates the first stays.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.words import DIGITS, Hashes, Indices, Words, compiled, mix, span_hash, spans

Signatures = npt.NDArray[np.uint32]
TakeRows = Callable[[Indices], Signatures]
KEPT, EXACT, NEAR = 0, 2, 3  # what stays is of split 0, and 1 is the other split
_PAIRS = 1 << 16  # compared at once
DUPLICATES = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}


def signatures(words: Words, shingle_words: int, values: int) -> Signatures:
    """One row of `values` minima a document; a document shorter than a shingle is one shingle."""
    return _minima(words.hashes, words.documents, shingle_words, *_permutations(values))


@lru_cache(maxsize=1)
def _permutations(values: int) -> tuple[Signatures, Signatures]:
    random = np.random.Generator(np.random.PCG64(2107_06499))
    factors = random.integers(0, 1 << 32, values, dtype=np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, values, dtype=np.uint32)


@compiled
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
    """One row of keys a band, one 64-bit key a document: equal keys mean equal values in that band."""
    values = rows.reshape(len(rows), bands, -1)
    keys = np.zeros((bands, len(rows)), np.uint64)
    for column in range(values.shape[2]):
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + values[:, :, column].T)
    return keys


def whole_hashes(words: Words) -> Hashes:
    """One hash a document over all its words: equal up to case, spacing and compatibility forms."""
    return spans(words.hashes, words.documents[:-1], words.documents[1:])


def number_hashes(words: Words) -> Hashes:
    """One hash a document over its numbers in their order."""
    return whole_hashes(words.select(words.kinds == DIGITS))


def find_duplicates(
    whole: Hashes, numbers: Hashes, bands: Iterable[Hashes], rows: TakeRows, threshold: float
) -> tuple[npt.NDArray[np.uint8], Indices]:
    """KEPT, EXACT or NEAR for every document, and the document that stays in its place.

    `whole` are hashes of all words. `numbers` is 0 for text, else a hash of the numbers, and only documents
    with the same value can be near duplicates of each other. `bands` gives every document's key in one band
    after the other, `rows` the signatures of the documents asked for, so that neither need be in memory.
    """
    edges, salt = [_edges(whole)], mix(numbers)
    for keys in bands:
        left, right = _edges(keys ^ salt)
        # The share of equal values in two signatures estimates their Jaccard similarity; in blocks.
        blocks = [slice(low, low + _PAIRS) for low in range(0, len(left), _PAIRS)]
        shares = [(rows(left[block]) == rows(right[block])).mean(axis=1) for block in blocks]
        agree = np.concatenate([[], *shares]) >= threshold
        edges.append((left[agree], right[agree]))
    left, right = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    first = _components(len(whole), left, right)
    verdict = np.where(first == np.arange(len(whole)), KEPT, NEAR).astype(np.uint8)
    verdict[edges[0][1]] = EXACT
    return verdict, first


def _edges(keys: Hashes) -> tuple[Indices, Indices]:
    """From the first document of each group of equal keys to each other one."""
    order = np.argsort(keys, kind="stable")
    grouped = keys[order]
    new = np.append(True, grouped[1:] != grouped[:-1])[: len(keys)]
    heads = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return heads[~new], order[~new]


@compiled
def _components(count: int, left: Indices, right: Indices) -> Indices:
    """Smallest document of each one's connected component."""
    parent = np.arange(count)  # never above the document itself
    for edge in range(len(left)):
        one, other = left[edge], right[edge]
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        parent[max(one, other)] = min(one, other)
    for document in range(count):
        parent[document] = parent[parent[document]]
    return parent
