"""The work folder of a build: what one shard leaves for the next stage, and when it is done.

Every shard has one folder a stage; `done.json`, written last, holds its counts.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.decontaminate import benchmark_files
from megatron_mathcpt.data.sources import Shard, list_shards
from megatron_mathcpt.data.tokenizer import tokenizer_file
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically, write_whole

RESULTS = ("documents", "dropped", "rejected", "tokenizer", "datasets")
WORK, EXECUTORS = ".work", ".datatrove"  # shards' results between stages; datatrove's logs and completions


@dataclass(frozen=True)
class Build:
    """One build: its config, its shards in keep order and where it writes."""

    config: Corpus
    shards: tuple[Shard, ...]
    out: Path

    def folder(self, stage: str, shard: Shard) -> Path:
        """Where `stage` leaves the results of `shard`."""
        return self.out / WORK / stage / shard.name

    def done(self, stage: str, shard: Shard) -> dict[str, Any] | None:
        """Counts of a finished shard, None while it is not finished."""
        file = self.folder(stage, shard) / "done.json"
        return orjson.loads(file.read_bytes()) if file.is_file() else None

    def counts(self, stage: str, shard: Shard) -> dict[str, Any]:
        """Counts of a shard that an earlier stage has finished."""
        counts = self.done(stage, shard)
        assert counts is not None, f"{shard.name} is not {stage}"
        return counts

    def finish(self, stage: str, shard: Shard, counts: dict[str, Any]) -> None:
        """Mark `shard` as finished in `stage`."""
        write_atomically(self.folder(stage, shard) / "done.json", orjson.dumps(counts))

    def claim(self) -> None:
        """Keep the unfinished work of just these files and this config; remove any other.

        Raw files are known by size and time here, as terabytes cannot be hashed at every start.
        """
        known = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for s in self.shards for f in s.files]
        key = hash_json([known, small_inputs(self.config), self.config.model_dump(mode="json")]).encode()
        file = self.out / WORK / "key"
        if file.is_file() and file.read_bytes() == key:
            return
        for name in (WORK, EXECUTORS, *RESULTS):
            if (self.out / name).exists():
                shutil.rmtree(self.out / name)
        write_atomically(file, key)


def open_build(config: Corpus, out: Path) -> Build:
    """The build of `config` in `out`; raises `DataError` naming a source that is not found."""
    return Build(config, tuple(list_shards(config.sources)), out)


def small_inputs(config: Corpus) -> dict[str, str]:
    """SHA-256 of benchmark and tokenizer files."""
    files: dict[str, Path] = {}
    if config.decontaminate:
        found = benchmark_files(config.decontaminate)
        files = {f"benchmark/{file.parent.name}/{file.name}": file for file in found}
    if config.tokenizer.path:
        files["tokenizer"] = tokenizer_file(Path(config.tokenizer.path))
    return {name: hash_file(file) for name, file in files.items()}


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Save `array` whole or not at all."""
    with write_whole(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """An array of `save_array`, mapped from disk."""
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
