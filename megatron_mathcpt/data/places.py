"""Where each document of a pool stands: in `documents/<pool>.jsonl`, in its raw file, in the datasets.

`documents/<pool>.places` holds one record of 17 bytes a document, in the order of the documents. Its number
among those of its split is its number in the indexed dataset. Read mapped, so that nothing is loaded whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.errors import DataError

# Bytes of the JSON line, line feed too; number of the raw file in the report's `shards`; line or row in it,
# counted from 1; split as in data/decide.py.
PLACE = np.dtype([("bytes", "<u4"), ("shard", "<u4"), ("line", "<i8"), ("split", "u1")])
Places = npt.NDArray[Any]  # of PLACE


def make_places(
    sizes: Sequence[int], shard: int, lines: npt.NDArray[np.uint64], splits: npt.NDArray[np.uint8]
) -> bytes:
    """The records of documents of one shard."""
    places = np.empty(len(sizes), PLACE)
    places["bytes"], places["shard"], places["line"], places["split"] = sizes, shard, lines, splits
    return places.tobytes()


def load_places(path: Path) -> Places:
    """The records of a pool, mapped from disk.

    Raises `DataError` when there is no such file, as in a corpus of an older version, or it is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; build the corpus again in a new folder to look into it")
    size = path.stat().st_size
    if size % PLACE.itemsize:
        raise DataError(f"{path}: {size} bytes, no whole number of records; build the corpus again")
    return np.memmap(path, PLACE, "r") if size else np.empty(0, PLACE)
