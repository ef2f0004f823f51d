"""The folder of packed fine-tuning samples: whole records with their tokens, and which sample each is in.

tokens.npy has the token ids of all records, sample after sample; trained.npy, whether each counts in the
loss; lengths.npy, the tokens of each record; samples.npy, of each sample, and of their end, the numbers of
its first record and first token. records.jsonl has the ids in each sample. Nothing is padded, so a sample of
one short record takes no more than that. Samples are written in parts, each a file, which `join_parts` joins.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.format import write_array_header_1_0

from megatron_mathcpt.formats.files import atomic_writer, read_range
from megatron_mathcpt.formats.indexed_dataset import Ids

Flags = npt.NDArray[np.bool_]
Kind = np.dtype[np.generic]
_INT = np.dtype("<i4")


class Example(NamedTuple):
    """One record: its token ids, and for each whether it is trained; the first never is."""

    id: str
    tokens: Ids
    trained: Flags


@dataclass(frozen=True)
class Part:
    """Some of the samples in a file of their own: counts, and at which bytes each array begins and ends."""

    file: Path
    counts: dict[str, int]
    spans: dict[str, tuple[int, int]]

    def count(self, name: str, kind: Kind) -> int:
        begin, end = self.spans[name]
        return (end - begin) // int(kind.itemsize)

    def read(self, name: str) -> Ids:
        return np.fromfile(self.file, _INT, self.count(name, _INT), offset=self.spans[name][0])


def write_part(file: Path, samples: Sequence[Sequence[Example]], dtype: Kind, counts: dict[str, int]) -> None:
    """Write samples, and `counts` of what they were made from; the file is complete once it is there."""
    records = [record for sample in samples for record in sample]
    ids = (json.dumps([record.id for record in sample]).encode() + b"\n" for sample in samples)
    contents = {
        "tokens": b"".join(record.tokens.astype(dtype).tobytes() for record in records),
        "trained": b"".join(record.trained.tobytes() for record in records),
        "lengths": np.array([len(record.tokens) for record in records], _INT).tobytes(),
        "sizes": np.array([len(sample) for sample in samples], _INT).tobytes(),
        "records": b"".join(ids),
    }
    head = {"counts": counts, "bytes": {name: len(content) for name, content in contents.items()}}
    with atomic_writer(file) as stream:
        stream.write(json.dumps(head).encode() + b"\n")
        stream.writelines(contents.values())


def open_part(file: Path) -> Part:
    with file.open("rb") as stream:
        line = stream.readline()
    head = json.loads(line)
    ends = accumulate(head["bytes"].values(), initial=len(line))
    return Part(file, head["counts"], dict(zip(head["bytes"], pairwise(ends), strict=True)))


def join_parts(parts: Sequence[Part], out: Path, dtype: Kind) -> int:
    """Write the arrays and `records.jsonl` of all `parts`, in order, into `out`; returns the samples."""
    for name, kind in {"tokens": dtype, "trained": np.dtype("?"), "lengths": _INT}.items():
        with _array_writer(out, name, kind, (sum(part.count(name, kind) for part in parts),)) as file:
            _copy(parts, name, file)
    with atomic_writer(out / "records.jsonl") as file:
        _copy(parts, "records", file)
    samples = sum(part.count("sizes", _INT) for part in parts)
    with _array_writer(out, "samples", np.dtype("<i8"), (samples + 1, 2)) as file:
        end = np.zeros(2, "<i8")
        for part in parts:
            sums = (np.cumsum(part.read(name), dtype="<i8") for name in ("sizes", "lengths"))
            records, tokens = (np.concatenate(([0], one)) for one in sums)
            rows = np.stack((records, tokens[records]), 1) + end
            file.write(rows[:-1].tobytes())
            end = rows[-1]
        file.write(end.tobytes())
    return samples


def _copy(parts: Sequence[Part], name: str, file: BinaryIO) -> None:
    for part in parts:
        file.writelines(read_range(part.file, part.spans[name]))


@contextmanager
def _array_writer(out: Path, name: str, kind: Kind, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    # Not through mapped memory: on a full disk that ends the process without a word.
    with atomic_writer(out / f"{name}.npy") as file:
        write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": shape})
        yield file
