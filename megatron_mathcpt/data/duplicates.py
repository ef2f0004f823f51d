"""Which documents are copies of earlier ones: exact by hash, near by MinHash bands and verified signatures.

Documents are numbered in keep order over all sources; of a group of duplicates the first stays.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.minhash import Signatures
from megatron_mathcpt.data.words import Hashes, Indices, mix

TakeRows = Callable[[Indices], Signatures]
KEPT, EXACT, NEAR = range(3)
REASONS = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}


def find_duplicates(
    whole: Hashes, numbers: Hashes, bands: Iterable[Hashes], rows: TakeRows, threshold: float
) -> tuple[npt.NDArray[np.uint8], Indices]:
    """KEPT, EXACT or NEAR for every document, and the document that stays in its place.

    `whole` are hashes of all words. `numbers` is 0 for text, else a hash of the numbers, and only documents
    with the same value can be near duplicates of each other. `bands` gives every document's key in one band
    after the other, `rows` the signatures of the documents asked for, so that neither need be in memory.
    """
    exact = _edges(whole)
    edges = [exact]
    salt = mix(numbers)
    for keys in bands:
        left, right = _edges(keys ^ salt)
        agree = _agreement(rows, left, right) >= threshold
        edges.append((left[agree], right[agree]))
    first = _components(len(whole), edges)
    verdict = np.where(first == np.arange(len(whole)), KEPT, NEAR).astype(np.uint8)
    verdict[exact[1]] = EXACT
    return verdict, first


def _edges(keys: Hashes) -> tuple[Indices, Indices]:
    """From the first document of each group of equal keys to each other one."""
    order = np.argsort(keys, kind="stable")
    grouped = keys[order]
    new = np.concatenate(([True], grouped[1:] != grouped[:-1])) if len(keys) else np.empty(0, np.bool_)
    heads = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return heads[~new], order[~new]


def _agreement(rows: TakeRows, left: Indices, right: Indices) -> npt.NDArray[np.float64]:
    """Share of equal values in two signatures, the estimate of their Jaccard similarity, in blocks."""
    step = 1 << 16
    parts = [
        (rows(left[low : low + step]) == rows(right[low : low + step])).mean(axis=1)
        for low in range(0, len(left), step)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _components(count: int, edges: list[tuple[Indices, Indices]]) -> Indices:
    """Smallest document of each one's connected component, by repeated minimum and pointer jumping."""
    left = np.concatenate([pair[0] for pair in edges])
    right = np.concatenate([pair[1] for pair in edges])
    label = np.arange(count)
    while True:
        before = label.copy()
        smallest = np.minimum(label[left], label[right])
        np.minimum.at(label, left, smallest)
        np.minimum.at(label, right, smallest)
        np.minimum.at(label, before[left], smallest)
        np.minimum.at(label, before[right], smallest)
        label = label[label]
        if np.array_equal(label, before):
            return label
