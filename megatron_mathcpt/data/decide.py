"""Second stage, once for all shards: which documents are duplicates, and which go to validation."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.duplicates import KEPT, REASONS, find_duplicates
from megatron_mathcpt.data.minhash import Signatures
from megatron_mathcpt.data.sources import Shard
from megatron_mathcpt.data.words import Hashes, Indices, mix
from megatron_mathcpt.data.work import Build, load_array, save_array
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.corpus_folder import TRAIN, VALIDATION

EXACT, NEAR = 2, 3  # decisions beside the splits' numbers
DUPLICATES = {EXACT: REASONS[1], NEAR: REASONS[2]}


def decide(build: Build, task: int = 0) -> None:
    """Leave a decision for every document of every shard, and the place in the corpus of the one it copies.

    Raises `DataError` when a pool has no document left.
    """
    whole = _gather(build, "whole")
    decisions, first = _duplicates(build, whole)
    keys = split_keys(whole, build.config.seed)
    _split(build, decisions, keys)
    ends = np.cumsum([_kept(build, shard) for shard in build.shards])
    for shard, low, high in zip(build.shards, [0, *ends[:-1]], ends, strict=True):
        folder = build.folder("decided", shard)
        save_array(folder / "decisions.npy", decisions[low:high])
        save_array(folder / "first.npy", first[low:high])
        save_array(folder / "keys.npy", keys[low:high])


def split_keys(whole: Hashes, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each document that depends only on its words and the seed."""
    salt = mix(np.array([seed % (1 << 64)], np.uint64))
    return (mix(whole ^ salt) >> np.uint64(11)) / float(1 << 53)


def _gather(build: Build, name: str) -> npt.NDArray[Any]:
    return np.concatenate(_mapped(build, name))


def _mapped(build: Build, name: str) -> list[npt.NDArray[Any]]:
    """An array of every shard, on disk."""
    return [load_array(build.folder("prepared", shard) / f"{name}.npy") for shard in build.shards]


def _kept(build: Build, shard: Shard) -> int:
    return int(build.counts("prepared", shard)["kept"])


def _duplicates(build: Build, whole: Hashes) -> tuple[npt.NDArray[np.uint8], Indices]:
    rule = build.config.deduplicate
    if rule is None:
        return np.full(len(whole), TRAIN, np.uint8), np.arange(len(whole))
    keys = _mapped(build, "bands")
    bands = (np.concatenate([part[band] for part in keys]) for band in range(rule.bands))
    rows = partial(_take, _mapped(build, "signatures"))
    verdict, first = find_duplicates(whole, _gather(build, "numbers"), bands, rows, rule.threshold)
    return np.where(verdict == KEPT, TRAIN, verdict + 1).astype(np.uint8), first


def _take(parts: Sequence[Signatures], documents: Indices) -> Signatures:
    """The rows of `documents`, numbered over all of `parts`."""
    begins = np.cumsum([0, *map(len, parts)])
    where = np.searchsorted(begins, documents, side="right") - 1
    rows = np.empty((len(documents), parts[0].shape[1]), np.uint32)
    for number in np.unique(where):
        here = where == number
        rows[here] = parts[number][documents[here] - begins[number]]
    return rows


def _split(build: Build, decisions: npt.NDArray[np.uint8], keys: npt.NDArray[np.float64]) -> None:
    """Send documents to validation; a pool gets one at least, that with the smallest key."""
    pools = np.repeat(
        [build.config.sources[shard.source].pool for shard in build.shards],
        [_kept(build, shard) for shard in build.shards],
    )
    for pool in pools_of(build.config):
        inside = np.flatnonzero((pools == pool) & (decisions == TRAIN))
        if not len(inside):
            raise DataError(
                f"pool '{pool}': no document left after filters, deduplication and decontamination; "
                "loosen the rules or give other sources"
            )
        fraction = build.config.validation_fraction
        chosen = inside[keys[inside] < fraction]
        if fraction and not len(chosen) and len(inside) > 1:
            chosen = inside[np.argmin(keys[inside])][None]
        decisions[chosen] = VALIDATION


def pools_of(config: Corpus) -> list[str]:
    """Pools of the build in order of their first source."""
    return list(dict.fromkeys(source.pool for source in config.sources.values()))
