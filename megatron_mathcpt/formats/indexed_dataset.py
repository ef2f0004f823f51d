"""Megatron-Core's indexed dataset (`.bin` and `.idx`) written, merged and checked in numpy blocks.

Format of `megatron/core/datasets/indexed_dataset.py`, version 1: the header, an int32 length per sequence,
an int64 byte offset per sequence, the first sequence of every document. Ours have one sequence per document.
"""

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import BackgroundFsync, atomic_writer, sync_folder

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_BLOCK = 1 << 20  # documents per block: 8 MB of offsets at a time

Lengths = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int32]
TokenType = np.dtype[np.integer]
# Megatron-Core's `DType`; it has floats too, which are no token ids. Ours are int32 or uint16.
_TYPES: dict[int, TokenType] = {
    **{1: np.dtype(np.uint8), 2: np.dtype(np.int8), 3: np.dtype(np.int16), 4: np.dtype(np.int32)},
    **{5: np.dtype(np.int64), 8: np.dtype(np.uint16)},
}
_FLOATS = {6: "float64", 7: "float32"}
_CODES = {dtype: code for code, dtype in _TYPES.items()}
_SEQUENCES = 1 << 14  # read at once


def token_dtype(vocab_size: int) -> TokenType:
    """The type that Megatron-Core chooses for a vocabulary (`DType.optimal_dtype`)."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


def _file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def write_index(file: BinaryIO, lengths: Lengths, dtype: TokenType) -> None:
    """Write an index for documents of these lengths in tokens; needs 8 MB beyond `lengths` itself."""
    # Megatron-Core's own writer keeps Python lists: 115 bytes per document, 11 GB for 10^8 of them.
    file.write(_HEADER.pack(_MAGIC, 1, _CODES[dtype], len(lengths), len(lengths) + 1))
    lengths.astype("<i4", copy=False).tofile(file)
    offset = 0
    for low in range(0, len(lengths), _BLOCK):
        ends = np.cumsum(lengths[low : low + _BLOCK], dtype=np.int64) * dtype.itemsize + offset
        np.concatenate(([offset], ends[:-1])).astype("<i8").tofile(file)
        offset = int(ends[-1])
    for low in range(0, len(lengths) + 1, _BLOCK):
        np.arange(low, min(low + _BLOCK, len(lengths) + 1), dtype="<i8").tofile(file)


def read_lengths(prefix: Path) -> tuple[Lengths, TokenType]:
    """Lengths, memory-mapped, and token type of an indexed dataset; raises `DataError` if it is damaged."""
    sequences, _, dtype = _read_header(prefix)
    lengths: Lengths = np.empty(0, np.int32)
    if sequences:  # an empty file cannot be mapped
        lengths = np.memmap(_file(prefix, ".idx"), np.int32, "r", _HEADER.size, (sequences,))
    _check_size(_file(prefix, ".bin"), int(lengths.sum(dtype=np.int64)) * dtype.itemsize, "its index")
    _check_order(_file(prefix, ".idx"), lengths, dtype)
    return lengths, dtype


def _check_order(index: Path, lengths: Lengths, dtype: TokenType) -> None:
    """Compare offsets with the sums of the lengths, and documents with their order; a block at a time."""
    end, documents_at = 0, _HEADER.size + 12 * len(lengths)
    # Ours have one document a sequence, so each number once; Megatron-LM's may have several or none.
    step = 1 if index.stat().st_size == documents_at + 8 * (len(lengths) + 1) else 0
    last = -step
    with index.open("rb") as file:
        file.seek(_HEADER.size + lengths.nbytes)
        for low in range(0, len(lengths), _BLOCK):
            part = lengths[low : low + _BLOCK]
            ends = end + np.cumsum(part, dtype=np.int64) * dtype.itemsize
            offsets = np.fromfile(file, "<i8", len(part))
            if part.min() < 0 or not np.array_equal(offsets, np.concatenate(([end], ends[:-1]))):
                raise DataError(f"{index}: its lengths and offsets do not agree; build the dataset again")
            end = int(ends[-1])
        while len(documents := np.fromfile(file, "<i8", _BLOCK)):  # the first sequence of each
            if np.diff(documents, prepend=last).min() < step:
                raise DataError(f"{index}: its documents are not in order; build the dataset again")
            last = int(documents[-1])
    if last != len(lengths):
        raise DataError(f"{index}: ends with document {last} of {len(lengths)}; build the dataset again")


def read_document(prefix: Path, number: int) -> tuple[int, Ids]:
    """Position of a document's first token in the dataset, and its token ids; reads nothing else."""
    _, begin, dtype = read_part(prefix, number, 1)
    (tokens,) = read_documents(prefix, number, 1)
    return begin // dtype.itemsize, tokens


def read_documents(prefix: Path, first: int = 0, count: int = 1 << 62) -> list[Ids]:
    """Token ids of up to `count` documents from number `first`; reads nothing else."""
    lengths, begin, dtype = read_part(prefix, first, count)
    size, file = int(lengths.sum(dtype=np.int64)), _file(prefix, ".bin")
    tokens = np.fromfile(file, dtype, size, offset=begin)
    if len(tokens) != size:
        raise DataError(f"{file}: ends before its index does; build the dataset again")
    return split_tokens(tokens.astype(np.int32, copy=False), lengths)


def split_tokens(tokens: Ids, lengths: Lengths) -> list[Ids]:
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [tokens[begin:end] for begin, end in pairwise([0, *ends])]


def read_part(prefix: Path, first: int, count: int) -> tuple[Lengths, int, TokenType]:
    """Of up to `count` documents from number `first`: lengths, the first's byte in `.bin`, the token type."""
    sequences, _, dtype = _read_header(prefix)
    index = _file(prefix, ".idx")
    count = max(0, min(count, sequences - first))
    lengths = np.fromfile(index, "<i4", count, offset=_HEADER.size + 4 * first)
    offsets = np.fromfile(index, "<i8", count + 1, offset=_HEADER.size + 4 * sequences + 8 * first)
    # The last one ends with the file; then come the documents.
    ends = np.append(offsets[: max(0, sequences - first)], _file(prefix, ".bin").stat().st_size)
    begin, end = int(ends[0]), int(ends[count])
    size = int(lengths.sum(dtype=np.int64)) * dtype.itemsize
    if begin < 0 or lengths.min(initial=0) < 0 or begin % dtype.itemsize or end != begin + size:
        raise DataError(f"{index}: document {first} ends elsewhere than it says; build the dataset again")
    return lengths, begin, dtype


def read_sequences(prefix: Path) -> Iterator[tuple[npt.NDArray[np.integer], Lengths]]:
    """All tokens once, mapped, in blocks of whole sequences with their lengths; raises as `read_lengths`."""
    lengths, dtype = read_lengths(prefix)
    tokens, end = _map_tokens(prefix, dtype), 0
    for low in range(0, len(lengths), _SEQUENCES):
        part = lengths[low : low + _SEQUENCES]
        begin, end = end, end + int(part.sum(dtype=np.int64))
        yield tokens[begin:end], part


def _map_tokens(prefix: Path, dtype: TokenType) -> npt.NDArray[np.integer]:
    file = _file(prefix, ".bin")  # an empty one cannot be mapped
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)


def count_documents(prefix: Path) -> int:
    """Documents that an index lists, of one sequence, or several or none."""
    return _read_header(prefix)[1] - 1


def _read_header(prefix: Path) -> tuple[int, int, TokenType]:
    index = _file(prefix, ".idx")
    for file in (index, _file(prefix, ".bin")):
        if not file.is_file():
            raise DataError(f"{file}: not found; build the dataset again")
    with index.open("rb") as stream:
        header = stream.read(_HEADER.size).ljust(_HEADER.size, b"\0")
    magic, version, code, sequences, documents = _HEADER.unpack(header)
    if (magic, version) == (_MAGIC, 1) and code in _FLOATS:
        raise DataError(f"{index}: has {_FLOATS[code]} numbers, no token ids; give a dataset of tokens")
    if (magic, version) != (_MAGIC, 1) or code not in _TYPES:
        raise DataError(f"{index}: not an index of Megatron-Core, version 1; build the dataset again")
    _check_size(index, _HEADER.size + 12 * sequences + 8 * documents, "its header")
    return sequences, documents, _TYPES[code]


def _check_size(file: Path, expected: int, what: str) -> None:
    if (found := file.stat().st_size) != expected:
        raise DataError(f"{file}: {found} bytes, {what} says {expected}; build it again")


def merge(parts: Sequence[Path], prefix: Path) -> None:
    lengths, dtypes = zip(*map(read_lengths, parts), strict=True)
    if len(set(dtypes)) != 1:
        raise DataError(f"{prefix}: parts have different token types; tokenize all with one tokenizer")
    with dataset_writer(prefix, dtypes[0]) as writer:
        for part, counts in zip(parts, lengths, strict=True):
            writer.write(_map_tokens(part, dtypes[0]), counts)


@contextmanager
def dataset_writer(prefix: Path, dtype: TokenType) -> Iterator["DatasetWriter"]:
    """Open an indexed dataset for writing that replaces an older one only if the block succeeds."""
    index_file, tokens_file = _file(prefix, ".idx"), _file(prefix, ".bin")
    # Closed in reverse order: `.bin` is renamed, then `.idx`, then another writer may do the same.
    with ExitStack() as last, atomic_writer(index_file) as index, atomic_writer(tokens_file) as tokens:
        writer = DatasetWriter(tokens, dtype)
        yield writer
        writer.finish(index)
        descriptor = os.open(prefix.parent, os.O_RDONLY)
        last.callback(os.close, descriptor)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Both are on disk. Without an index a `.bin` is refused; with an older one it would be cut wrongly.
        index_file.unlink(missing_ok=True)
        sync_folder(prefix.parent)


class DatasetWriter:
    """Appends documents to the open `.bin` file of an indexed dataset."""

    def __init__(self, file: BinaryIO, dtype: TokenType) -> None:
        self._file, self._dtype, self._disk = file, dtype, BackgroundFsync(file)
        self._lengths: list[Lengths] = [np.empty(0, np.int32)]
        self.documents, self.tokens = 0, 0

    def write(self, tokens: npt.NDArray[np.integer], lengths: Lengths) -> None:
        stored = tokens.astype(self._dtype, copy=False)
        stored.tofile(self._file)
        self._lengths.append(lengths.astype(np.int32, copy=False))
        self.documents, self.tokens = self.documents + len(lengths), self.tokens + len(stored)
        self._disk.wrote(stored.nbytes)

    def finish(self, index: BinaryIO) -> None:
        """Write the index, and return when both files are on disk."""
        self._disk.finish()
        write_index(index, np.concatenate(self._lengths), self._dtype)
        index.flush()
        os.fsync(index.fileno())
