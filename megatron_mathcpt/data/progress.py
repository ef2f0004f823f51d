"""How far a build is, read from the markers of its shards: the same for processes here and jobs of Slurm."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from megatron_mathcpt.data.stages import Stage
from megatron_mathcpt.data.work import Build
from megatron_mathcpt.formats.corpus_folder import SPLITS
from megatron_mathcpt.log import get_logger

_POLL_SECONDS = 0.5
_LOG_SECONDS = 10
_log = get_logger(__name__)


@dataclass(frozen=True)
class Progress:
    """Shards, bytes of raw files, and tokens (0 before they are counted) of one stage."""

    shards: int
    all_shards: int
    bytes: int
    all_bytes: int
    tokens: int


def read_progress(build: Build, stage: Stage) -> Progress:
    """What the markers of `stage`, which has one a shard, say."""
    assert stage.done is not None
    sizes = [shard.bytes for shard in build.shards]
    counts = [build.done(stage.done, shard) for shard in build.shards]
    done = [(size, count) for size, count in zip(sizes, counts, strict=True) if count is not None]
    splits = (count.get(split, {}) for _, count in done for split in SPLITS.values())
    tokens = sum(split.get("tokens", 0) for split in splits)
    return Progress(len(done), len(sizes), sum(size for size, _ in done), sum(sizes), tokens)


def describe(now: Progress, start: Progress, seconds: float) -> str:
    """`3 of 12 shards, 45 of 180 MB, 15.0 MB/s, 4.1 Mtokens/s, 9 s left`, rates since `start`."""
    read = now.bytes - start.bytes
    parts = [
        f"{now.shards:,} of {now.all_shards:,} shards",
        f"{now.bytes / 1e6:,.0f} of {now.all_bytes / 1e6:,.0f} MB",
    ]
    if read and seconds > 0:
        parts.append(f"{read / 1e6 / seconds:,.1f} MB/s")
        if now.tokens > start.tokens:
            parts.append(f"{(now.tokens - start.tokens) / 1e6 / seconds:,.2f} Mtokens/s")
        if now.bytes < now.all_bytes:
            parts.append(f"{(now.all_bytes - now.bytes) * seconds / read:,.0f} s left")
    return ", ".join(parts)


@contextmanager
def reported(build: Build, stage: Stage) -> Iterator[None]:
    """Log the progress of `stage` while the block runs, and at its end."""
    _log.info("%s", stage.name)
    if stage.done is None:
        yield
        return
    begin, start = time.monotonic(), read_progress(build, stage)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(build, stage, start, begin, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    now = read_progress(build, stage)
    _log.info("%s: %s", stage.name, describe(now, start, time.monotonic() - begin))


def _watch(build: Build, stage: Stage, start: Progress, begin: float, ended: threading.Event) -> None:
    shown, seen = time.monotonic(), start.shards
    while not ended.wait(_POLL_SECONDS):
        if time.monotonic() - shown < _LOG_SECONDS:
            continue
        now, shown = read_progress(build, stage), time.monotonic()
        if now.shards > seen:
            _log.info("%s: %s", stage.name, describe(now, start, shown - begin))
            seen = now.shards
