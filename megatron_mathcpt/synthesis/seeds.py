"""Seed problems as a stream: millions of them never sit in memory."""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

import orjson
from pydantic import ValidationError

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import Problem

_KEPT = ("id", "question", "solution", "answer", "stage")


@dataclass(frozen=True)
class Survey:
    """Number of seeds, and the hash of all their lines."""

    seeds: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """Which seeds are ours: those whose position leaves `number` when divided by `count`."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise DataError(f"shard {self.number} of {self.count}: expected 0 to {self.count - 1}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `INDEX/COUNT`; raises `DataError` for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise DataError(f"shard '{text}': expected INDEX/COUNT, such as 0/16")
        return cls(int(index), int(count))

    @property
    def folder_name(self) -> str:
        """Name of the shard's folder."""
        return f"shard-{self.number:05d}-of-{self.count:05d}"


def survey(paths: tuple[str, ...], *, check: bool = True) -> Survey:
    """Read every seed once, before anything is spent; raises `DataError` naming the line of a bad one.

    Without `check` lines are only counted and hashed: where no server is asked, nothing is lost by meeting a
    bad one later.
    """
    digest = hashlib.sha256()
    count = 0
    for path, number, line in _lines(paths):
        if check:
            _parse(line, path, number)
        digest.update(line)
        count += 1
    if not count:
        raise DataError(f"{', '.join(paths)}: no seeds; give files of one JSON problem a line")
    return Survey(count, digest.hexdigest())


def read_seeds(paths: tuple[str, ...], shard: Shard) -> Iterator[tuple[int, Problem]]:
    """(position over all files, seed) of this shard, in order."""
    for position, (path, number, line) in enumerate(_lines(paths)):
        if position % shard.count == shard.number:
            yield position, _parse(line, path, number)


def _lines(paths: tuple[str, ...]) -> Iterator[tuple[str, int, bytes]]:
    """(path, line number from 1, line) of all lines that hold something."""
    for path in paths:
        try:
            with _open(Path(path)) as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield path, number, line
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: seeds cannot be read ({error}); mend the path or the file") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        import zstandard

        return cast(IO[bytes], zstandard.open(path, "rb"))
    return path.open("rb")


def _parse(line: bytes, path: str, number: int) -> Problem:
    try:
        row: dict[str, Any] = orjson.loads(line)
        return Problem(
            **{key: row[key] for key in _KEPT if row.get(key) is not None},
            language=row.get("language") or row.get("lang") or "en",
        )
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON in UTF-8 ({error}); mend or drop the line") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(
            f"{path}:{number}: seed's {first['loc'][0]}: {first['msg']}; mend or drop the line"
        ) from error
    except (AttributeError, TypeError) as error:
        raise DataError(f"{path}:{number}: expected a JSON object; mend or drop the line") from error
