"""Find copies of earlier documents: exact by hash, near by MinHash bands and verified signatures.

MinHash: Broder 1997; for corpora, Lee et al. 2022, arXiv 2107.06499. Documents are numbered over all sources
in order of precedence; of a group of duplicates the first is kept.
"""

# Why `Deduplicate` defaults to 14 bands of 8 rows and threshold 0.7: bands and rows are datatrove's. A pair
# of Jaccard similarity J shares a band with probability 1 - (1 - J^8)^14, which rises most steeply near 0.72
# = (1/14)^(1/8): 0.56 at J = 0.7, 0.92 at 0.8, 0.9996 at 0.9. The threshold, on all 112 values, is at the
# same point and rejects less similar pairs that share a band by chance. Of 3,000 planted copies
# (configs/LOG.md) 100 % are found at J >= 0.9, 98 % at 0.8 to 0.9, 71 % at 0.7 to 0.8. Shingles keep numbers
# and operators: folding numbers, as web pipelines do, made datatrove drop 153 of 757 generated problems as
# copies of each other.

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.words import Hashes, Indices, Words, jit, mix, span_hash

Signatures = npt.NDArray[np.uint32]
TakeRows = Callable[[Indices], Signatures]
KEPT, EXACT, NEAR = 0, 2, 3  # numbered together with the splits: KEPT is the first, 1 the second
_PAIRS = 1 << 16  # compared at once: 58 MB of signatures
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


def find_duplicates(
    whole: Hashes, numbers: Hashes, bands: Iterable[Hashes], rows: TakeRows, threshold: float
) -> tuple[npt.NDArray[np.uint8], Indices]:
    """KEPT, EXACT or NEAR for every document, and the document that is kept in its place.

    `whole` are hashes of all words. `numbers` is 0 for text, else a hash of the numbers: only documents with
    equal ones can be near duplicates of each other. `bands` yields all documents' keys band by band, `rows`
    returns signatures by document, so that neither need be in memory.
    """
    edges, salt = [_edges(whole)], mix(numbers)
    for keys in bands:
        left, right = _edges(keys ^ salt)
        # The share of equal values in two signatures estimates their Jaccard similarity.
        blocks = [slice(low, low + _PAIRS) for low in range(0, len(left), _PAIRS)]
        shares = [(rows(left[block]) == rows(right[block])).mean(axis=1) for block in blocks]
        agree = np.concatenate([[], *shares]) >= threshold
        edges.append((left[agree], right[agree]))
    left, right = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    first = _components(len(whole), left, right)
    verdict = np.where(first == np.arange(len(whole)), KEPT, NEAR).astype(np.uint8)
    verdict[edges[0][1]] = EXACT  # after NEAR: an exact copy may also be near to others
    return verdict, first


def _edges(keys: Hashes) -> tuple[Indices, Indices]:
    """Pairs of the first document of each group of equal keys and every other one of the group."""
    order = np.argsort(keys, kind="stable")
    grouped = keys[order]
    new = np.append(True, grouped[1:] != grouped[:-1])[: len(keys)]
    heads = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return heads[~new], order[~new]


@jit
def _components(count: int, left: Indices, right: Indices) -> Indices:
    """Smallest document of each one's connected component, by union-find with path halving."""
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
