"""Second stage, once for all shards: which documents are duplicates, and which go to validation."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.minhash import KEPT, Signatures, find_duplicates
from megatron_mathcpt.data.prepare import ShardWork, load_array, save_array
from megatron_mathcpt.data.words import Hashes, Indices, mix
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.corpus_folder import TRAIN, VALIDATION

Decisions = npt.NDArray[np.uint8]  # the number of a split, or EXACT or NEAR of data/minhash.py
assert TRAIN == KEPT


def decide(works: Sequence[ShardWork], config: Corpus) -> None:
    """From what `prepare` left of all shards, leave every document's decision in `work.decided`.

    Beside it the place in the corpus of the document that stays for it, and its split key. Raises `DataError`
    when a pool has no document left.
    """
    whole = np.concatenate(_mapped(works, "whole"))
    decisions, first = _duplicates(works, whole, config)
    keys = split_keys(whole, config.seed)
    sizes = [len(part) for part in _mapped(works, "whole")]
    _split(decisions, keys, np.repeat([config.sources[w.shard.source].pool for w in works], sizes), config)
    ends = np.cumsum(sizes)
    for work, low, high in zip(works, [0, *ends[:-1]], ends, strict=True):
        for name, values in (("decisions", decisions), ("first", first), ("keys", keys)):
            save_array(work.decided / f"{name}.npy", values[low:high])


def split_keys(whole: Hashes, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each document that depends only on its words and the seed."""
    salt = mix(np.array([seed % (1 << 64)], np.uint64))
    return (mix(whole ^ salt) >> np.uint64(11)) / float(1 << 53)


def pools_of(config: Corpus) -> list[str]:
    """Pools of the build in order of their first source."""
    return list(dict.fromkeys(source.pool for source in config.sources.values()))


def _mapped(works: Sequence[ShardWork], name: str) -> list[npt.NDArray[Any]]:
    """An array of every shard, on disk."""
    return [load_array(work.prepared / f"{name}.npy") for work in works]


def _duplicates(works: Sequence[ShardWork], whole: Hashes, config: Corpus) -> tuple[Decisions, Indices]:
    rule = config.deduplicate
    if rule is None:
        return np.full(len(whole), TRAIN, np.uint8), np.arange(len(whole))
    keys, numbers = _mapped(works, "bands"), np.concatenate(_mapped(works, "numbers"))
    bands = (np.concatenate([part[band] for part in keys]) for band in range(rule.bands))
    rows = partial(_take, _mapped(works, "signatures"))
    return find_duplicates(whole, numbers, bands, rows, rule.threshold)


def _take(parts: Sequence[Signatures], documents: Indices) -> Signatures:
    """The rows of `documents`, numbered over all of `parts`."""
    begins = np.cumsum([0, *map(len, parts)])
    where = np.searchsorted(begins, documents, side="right") - 1
    rows = np.empty((len(documents), parts[0].shape[1]), np.uint32)
    for number in np.unique(where):
        here = where == number
        rows[here] = parts[number][documents[here] - begins[number]]
    return rows


def _split(
    decisions: Decisions, keys: npt.NDArray[np.float64], pools: npt.NDArray[np.str_], config: Corpus
) -> None:
    """Send documents to validation; a pool gets one at least, that with the smallest key."""
    for pool in pools_of(config):
        inside = np.flatnonzero((pools == pool) & (decisions == TRAIN))
        if not len(inside):
            raise DataError(
                f"pool '{pool}': no document left after filters, deduplication and decontamination; "
                "loosen the rules or give other sources"
            )
        chosen = inside[keys[inside] < config.validation_fraction]
        if config.validation_fraction and not len(chosen) and len(inside) > 1:
            chosen = inside[np.argmin(keys[inside])][None]
        decisions[chosen] = VALIDATION
