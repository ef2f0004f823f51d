"""MinHash signatures of documents (Broder 1997; for corpora, Lee et al. 2022, arXiv 2107.06499).

Shingles keep numbers and operators: folding them, as web pipelines do, would make all problems of one
template alike.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.words import DIGITS, Hashes, Indices, Words, compiled, mix, span_hash, spans

Signatures = npt.NDArray[np.uint32]


def signatures(words: Words, shingle_words: int, values: int) -> Signatures:
    """One row of `values` minima a document; a document shorter than a shingle is one shingle."""
    rows: Signatures = _minima(words.hashes, words.documents, shingle_words, *_permutations(values))
    return rows


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
    return spans(words, words.documents[:-1], words.documents[1:])


def number_hashes(words: Words) -> Hashes:
    """One hash a document over its numbers in their order."""
    return whole_hashes(words.select(words.kinds == DIGITS))


@lru_cache(maxsize=4)
def _permutations(values: int) -> tuple[Signatures, Signatures]:
    random = np.random.Generator(np.random.PCG64(2107_06499))
    factors = random.integers(0, 1 << 32, values, dtype=np.uint32) | np.uint32(1)
    return factors, random.integers(0, 1 << 32, values, dtype=np.uint32)
