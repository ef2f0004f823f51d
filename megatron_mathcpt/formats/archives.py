"""Compressed files of one or several frames, unpacked up to their end or to where they are damaged."""

import bz2
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import zstandard
from isal import isal_zlib

from megatron_mathcpt.errors import DataError

# Objects with `decompress`, `eof` and `unused_data`: zstandard's files end silently where they are truncated.
UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: isal_zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
}
_GZIP_DAMAGE = cast(type[Exception], isal_zlib.error)  # an instance by isal's stubs
DAMAGE = (OSError, EOFError, ValueError, _GZIP_DAMAGE, zstandard.ZstdError)
# Unpacked at once: 16 MB at the format's highest ratio (.bz2 has a limit instead); of .gz more, for speed.
_PACKED_BYTES = {".gz": 1 << 14, ".zst": 1 << 9, ".bz2": 1 << 14}
_MOST_BYTES = 8 << 20
_SPELLINGS = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".parq": ".parquet", ".pq": ".parquet"}
_SPELLINGS |= {".gzip": ".gz", ".zstd": ".zst"}
# How a file begins that is something else than its name says, what it is, and what to do.
_SIGNATURES = {
    b"version https://git-lfs": "a pointer of Git LFS; git lfs pull",
    b"\x1f\x8b": "packed by gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; name it .zst",
    b"\xfd7zXZ\0": "packed by xz; unpack it",
    b"PK\3\4": "a zip archive; unpack it",
}


class DamagedFile(DataError):
    """A fault of a whole file, which no share of rejected records allows."""


def spelling(path: Path) -> str:
    """The suffixes of a file in the usual spelling, `.jsonl.gz` for B.NDJSON.GZ."""
    return "".join(_SPELLINGS.get(suffix, suffix) for suffix in map(str.lower, path.suffixes[-2:]))


def packing_of(path: Path) -> str:
    """`.gz`, `.zst`, `.bz2`, or nothing for a file that is not compressed."""
    return next((packing for packing in UNPACKERS if spelling(path).endswith(packing)), "")


def foreign(path: Path) -> str:
    """What a file is instead of what its name says, and what to do; empty if there is no sign of it."""
    if path.is_file():  # a pipe has a beginning only
        with path.open("rb") as file:
            head = file.read(max(map(len, _SIGNATURES)))
        for sign, found in _SIGNATURES.items():
            if head.startswith(sign) and not spelling(path).endswith(found.split()[-1]):
                return f"is {found}"
    return ""


def unpack(path: Path) -> Iterator[bytes]:
    """Content of a compressed file in small parts; raises one of `DAMAGE` where it ends or is damaged."""
    packing = packing_of(path)
    with path.open("rb") as file:
        frame: Any = None
        limit = (_MOST_BYTES,) if packing == ".bz2" else ()  # its ratio is a million
        while packed := file.read(_PACKED_BYTES[packing]):
            while packed or not (frame.eof or getattr(frame, "needs_input", True)):
                if frame is None or frame.eof:  # an archive has one frame or several
                    frame = UNPACKERS[packing]()
                yield frame.decompress(packed, *limit)
                packed = frame.unused_data
        if frame is not None and not frame.eof:
            raise EOFError("truncated")
