"""The work folder of a build: what one shard leaves for the next stage, and when it is done.

Every shard has one folder a stage; `done.json`, written last, holds its counts and makes it complete.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.files import write_whole
from megatron_mathcpt.data.sources import Shard
from megatron_mathcpt.manifest import hash_json, write_atomically

RESULTS = ("documents", "dropped", "tokenizer", "datasets")


@dataclass(frozen=True)
class Build:
    """One build: its config, its shards in keep order and where it writes."""

    config: Corpus
    shards: tuple[Shard, ...]
    out: Path

    def folder(self, stage: str, shard: Shard) -> Path:
        """Where `stage` leaves the results of `shard`."""
        return self.out / ".work" / stage / shard.name

    def done(self, stage: str, shard: Shard) -> dict[str, Any] | None:
        """Counts of a finished shard, None while it is not finished."""
        file = self.folder(stage, shard) / "done.json"
        return orjson.loads(file.read_bytes()) if file.is_file() else None

    def finish(self, stage: str, shard: Shard, counts: dict[str, Any]) -> None:
        """Mark `shard` as finished in `stage`."""
        write_atomically(self.folder(stage, shard) / "done.json", orjson.dumps(counts))

    def claim(self, inputs: dict[str, str]) -> None:
        """Keep the unfinished work of just these inputs and this config; remove any other."""
        key = hash_json([inputs, self.config.model_dump(mode="json")]).encode()
        file = self.out / ".work" / "key"
        if file.is_file() and file.read_bytes() == key:
            return
        for name in (".work", *RESULTS):
            if (self.out / name).exists():
                shutil.rmtree(self.out / name)
        write_atomically(file, key)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Save `array` whole or not at all."""
    with write_whole(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """An array of `save_array`, mapped from disk."""
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
