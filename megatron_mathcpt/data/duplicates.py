"""The build stage `decide`: which documents of all shards are copies, by their hashes, in bounded memory."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data import minhash, prepare
from megatron_mathcpt.data.words import Indices
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.log import get_logger

_log = get_logger(__name__)


def decide(works: Sequence[prepare.ShardWork], config: Corpus) -> None:
    """Write for every prepared document whether it is a copy, and the document that is kept for it."""

    def blocks(name: str) -> minhash.Blocks:
        return lambda: prepare.array_blocks(work.prepared / name for work in works)

    sizes = prepare.count_documents(works)
    total, low = sum(sizes), 0
    if rule := config.deduplicate:
        values = rule.bands * rule.rows
        require_memory("decide", total, minhash.memory_bytes(total, values))
        rows = partial(gather, [work.prepared / "signatures.u4" for work in works], sizes, values)
        whole, numbers = blocks("whole.u8"), blocks("numbers.u8")
        bands = map(blocks, prepare.band_files(rule.bands))
        verdicts, firsts = minhash.find_duplicates(total, whole, numbers, bands, rows, rule.threshold)
    else:
        verdicts, firsts = np.full(total, minhash.KEPT, np.uint8), np.arange(total, dtype=np.uint32)
    left = dict.fromkeys(prepare.pools_of(config), 0)
    for work, size in zip(works, sizes, strict=True):
        part = slice(low, low := low + size)
        write_atomically(work.decided / "verdicts.u1", verdicts[part].tobytes())
        write_atomically(work.decided / "firsts.u4", firsts[part].tobytes())
        left[config.sources[work.shard.source].pool] += int((verdicts[part] == minhash.KEPT).sum())
    if empty := [pool for pool, count in left.items() if not count]:
        here = [work for work in works if config.sources[work.shard.source].pool == empty[0]]
        counts = (prepare.read_counts(work.prepared) for work in here)
        dropped = sum((Counter(its["dropped"]) for its in counts), Counter[str]())
        dropped["a copy of another"] = sum(prepare.count_documents(here))
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.most_common() if number)
        remedy = "loosen the rules or give other sources"
        raise DataError(f"pool '{empty[0]}': no document left (dropped: {reasons or 'none'}); {remedy}")


def gather(files: list[Path], sizes: list[int], values: int, documents: Indices) -> minhash.Signatures:
    """Signatures of `documents`, numbered over all of `files`, which have `sizes` each."""
    # By position and in order: mapped files, of 448 bytes per document, would count as memory.
    rows, length = np.empty((len(documents), values), np.uint32), values * 4
    flat = rows.data.cast("B")
    for number, places, inside in prepare.locate(sizes, documents):
        with files[number].open("rb") as file:
            for place, row in zip(places, inside, strict=True):
                os.preadv(file.fileno(), [flat[place * length : (place + 1) * length]], row * length)
    return rows


def require_memory(stage: str, documents: int, more: int) -> None:
    """Log how much memory this process will take with `more`; raises `DataError` if that is too much."""
    needed, most = psutil.Process().memory_info().rss + more, psutil.virtual_memory().total
    size = f"{stage}: {documents:,} documents need {needed / 1e9:.2f} GB of memory"
    _log.info("%s", size)
    if needed > most:
        remedy = "give it more (on a cluster, single_task.memory_gib) and run again: prepared shards are kept"
        other = "or take less of the sources (share), or build their pools as corpora of their own"
        raise DataError(f"{size}, and there are {most / 1e9:.2f} GB; {remedy}; {other}")
