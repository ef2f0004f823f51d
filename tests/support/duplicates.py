"""Duplicates of documents that are in memory: by the package, and by a plain algorithm that it must equal."""

import numpy as np

from megatron_mathcpt.data.minhash import EXACT, KEPT, NEAR, find_duplicates
from megatron_mathcpt.data.words import mix

Found = tuple[list[int], list[int]]


def duplicates_in_memory(
    whole: np.ndarray,
    numbers: np.ndarray,
    bands: np.ndarray,
    rows: np.ndarray,
    threshold: float,
    block: int = 1 << 18,
) -> Found:
    """Verdicts, and the documents that are kept, by `find_duplicates` on `block` documents at a time."""

    def blocks(values: np.ndarray):  # type: ignore[no-untyped-def]
        return lambda: (values[low : low + block] for low in range(0, len(values), block))

    keys = [blocks(band) for band in bands]
    verdicts, firsts = find_duplicates(
        len(whole), blocks(whole), blocks(numbers), keys, rows.__getitem__, threshold
    )
    return verdicts.tolist(), firsts.tolist()


def plain_duplicates(
    whole: np.ndarray, numbers: np.ndarray, bands: np.ndarray, rows: np.ndarray, threshold: float
) -> Found:
    """All pairs at once: edges of equal hashes by sorting, then of each band, then connected components."""
    edges = [_edges(whole)]
    for keys in bands:
        left, right = _edges(keys ^ mix(numbers))
        agree = (rows[left] == rows[right]).mean(axis=1) >= threshold
        edges.append((left[agree], right[agree]))
    first = np.arange(len(whole))
    while True:
        before = first.copy()
        for left, right in edges:  # the smallest number spreads along the edges until nothing changes
            least = np.minimum(first[left], first[right])
            np.minimum.at(first, left, least)
            np.minimum.at(first, right, least)
        if np.array_equal(first, before):
            break
    verdict = np.where(first == np.arange(len(whole)), KEPT, NEAR)
    verdict[edges[0][1]] = EXACT
    return verdict.tolist(), first.tolist()


def _edges(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the first document of each group of equal keys and every other one of the group."""
    order = np.argsort(keys, kind="stable")
    grouped = keys[order]
    new = np.append(True, grouped[1:] != grouped[:-1])[: len(keys)]
    heads = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return heads[~new], order[~new]
