"""MinHash signatures of documents (Broder 1997; for corpora, Lee et al. 2022, arXiv 2107.06499).

Shingles keep numbers and operators: folding them, as web pipelines do, would make all problems of one
template alike.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.words import DIGITS, Hashes, Words, mix, ngrams, spans

Signatures = npt.NDArray[np.uint32]


def signatures(words: Words, shingle_words: int, values: int) -> Signatures:
    """One row of `values` minima a document; a document shorter than a shingle is one shingle."""
    hashes, first = ngrams(words, shingle_words)
    begins = np.searchsorted(first, words.documents)
    bare = np.flatnonzero(begins[1:] == begins[:-1])
    hashes = np.insert(hashes, begins[bare], whole_hashes(words)[bare])
    begins[1:] += np.cumsum(begins[1:] == begins[:-1])
    shingles = (hashes >> np.uint64(32)).astype(np.uint32)
    columns = [
        np.minimum.reduceat((shingles ^ offset) * factor, begins[:-1])
        for factor, offset in zip(*_permutations(values), strict=True)
    ]
    return np.stack(columns, axis=1)


def band_keys(rows: Signatures, bands: int, band: int) -> Hashes:
    """One 64-bit key a document for one band: equal keys mean equal values in that band."""
    width = rows.shape[1] // bands
    keys = np.zeros(len(rows), np.uint64)
    for column in range(band * width, (band + 1) * width):
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + rows[:, column])
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
