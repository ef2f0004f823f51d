"""The folder of packed fine-tuning samples: whole records with their tokens, and which sample each is in.

tokens.npy has the token ids of all records, sample after sample; trained.npy, whether each counts in the
loss; lengths.npy, the tokens of each record; samples.npy, of each sample, and of their end, the numbers of
its first record and first token. records.jsonl has the ids in each sample. Nothing is padded, so a sample of
one short record takes no more than that. The arrays are written in parts, each in a folder of its own, which
`join_parts` puts together.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.format import write_array_header_1_0

from megatron_mathcpt.formats.files import atomic_writer, write_atomically
from megatron_mathcpt.formats.indexed_dataset import Ids, TokenType

DONE = "done.json"  # in a part's folder: it is complete; its counts
_COPIED = 16 << 20  # bytes at a time
Flags = npt.NDArray[np.bool_]
Kind = np.dtype[np.generic]
_TYPES: dict[str, Kind] = {"trained": np.dtype("?"), "lengths": np.dtype("<i4"), "sizes": np.dtype("<i4")}


class Example(NamedTuple):
    """One record: its token ids, and for each whether it is trained; the first never is."""

    id: str
    tokens: Ids
    trained: Flags


def write_part(folder: Path, samples: Sequence[Sequence[Example]], dtype: TokenType) -> None:
    """Write samples into `folder`; `finish_part` completes it."""
    records = [record for sample in samples for record in sample]
    arrays = {
        "tokens": np.concatenate([np.empty(0, dtype), *(record.tokens for record in records)]),
        "trained": np.concatenate([np.empty(0, np.bool_), *(record.trained for record in records)]),
        "lengths": np.array([len(record.tokens) for record in records]),
        "sizes": np.array([len(sample) for sample in samples]),
    }
    for name, array in arrays.items():
        write_atomically(folder / name, array.astype(_TYPES.get(name, dtype), copy=False).tobytes())
    ids = (json.dumps([record.id for record in sample]).encode() + b"\n" for sample in samples)
    write_atomically(folder / "records.jsonl", b"".join(ids))


def finish_part(folder: Path, counts: dict[str, int]) -> None:
    write_atomically(folder / DONE, json.dumps(counts).encode())


def read_part_counts(folder: Path) -> dict[str, int]:
    return json.loads((folder / DONE).read_bytes())  # type: ignore[no-any-return]


def join_parts(parts: Sequence[Path], out: Path, dtype: TokenType) -> int:
    """Write arrays and `records.jsonl` of all `parts`, in their order, into `out`; returns the samples."""
    for name in ("tokens", "trained", "lengths"):
        kind = _TYPES.get(name, dtype)
        with _array_writer(out, name, kind, (_count(parts, name, kind),)) as file:
            _copy(parts, name, file)
    with atomic_writer(out / "records.jsonl") as file:
        _copy(parts, "records.jsonl", file)
    samples = _count(parts, "sizes", _TYPES["sizes"])
    with _array_writer(out, "samples", np.dtype("<i8"), (samples + 1, 2)) as file:
        end = np.zeros(2, "<i8")
        for part in parts:
            sizes, lengths = (np.fromfile(part / name, _TYPES[name]) for name in ("sizes", "lengths"))
            records, tokens = (np.concatenate(([0], np.cumsum(one, dtype="<i8"))) for one in (sizes, lengths))
            rows = np.stack((records, tokens[records]), 1) + end
            file.write(rows[:-1].tobytes())
            end = rows[-1]
        file.write(end.tobytes())
    return samples


def _count(parts: Sequence[Path], name: str, kind: Kind) -> int:
    return sum((part / name).stat().st_size for part in parts) // kind.itemsize


@contextmanager
def _array_writer(out: Path, name: str, kind: Kind, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    # Not through mapped memory: on a full disk that ends the process without a word.
    with atomic_writer(out / f"{name}.npy") as file:
        write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": shape})
        yield file


def _copy(parts: Sequence[Path], name: str, file: BinaryIO) -> None:
    for part in parts:
        with (part / name).open("rb") as source:
            shutil.copyfileobj(source, file, _COPIED)
