"""The seeds of a synthesis: problems of any files, selected, counted, and divided into shards.

Files are read as a stream, many times; of a record only numbers are kept in memory: whether it is a seed, and
while seeds are chosen the rank of its id. A line that is no problem is refused with file and line, as a
paid-for record must not be lost by a typing error.
"""

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import ValidationError

from megatron_mathcpt.config.synthesis import Seeds, SynthesisConfig
from megatron_mathcpt.errors import DataError, first_error
from megatron_mathcpt.formats.archives import spelling
from megatron_mathcpt.formats.files import list_files, numbered_lines, open_json
from megatron_mathcpt.formats.json_arrays import split_array
from megatron_mathcpt.formats.lost_escapes import restore_commands
from megatron_mathcpt.formats.strict_json import Written, decode_object
from megatron_mathcpt.formats.tables import table_lines
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject, Problem, flat_row, id_rank, problem_of_row
from megatron_mathcpt.selection import drop_reason

_MOST_SEED_BYTES = 1 << 20  # with the blocks of the file, what a seed in progress may take of the memory
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class SeedShard:
    """The seeds whose position modulo `count` is `number`."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `INDEX/COUNT`; raises `DataError` for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if not found or int(found[1]) >= int(found[2]):
            raise DataError(f"shard '{text}': expected INDEX/COUNT from 0/COUNT on, such as 0/16")
        return cls(int(found[1]), int(found[2]))

    @property
    def folder(self) -> str:
        return f"shard-{self.number:05d}-of-{self.count:05d}"

    def share(self, whole: int | None) -> int | None:
        """This shard's part of a cap."""
        return None if whole is None else len(range(self.number, whole, self.count))


@dataclass(frozen=True)
class SeedSet:
    """The chosen seeds of all shards: `chosen` has a byte for each record, or is None if all are."""

    seeds: Seeds
    sha256: str  # of all records of the files
    chosen: bytes | None
    read: int
    dropped: dict[str, int]

    @property
    def count(self) -> int:
        return self.read - sum(self.dropped.values())

    def counts(self) -> JsonObject:
        return {"read": self.read, "selected": self.count, "dropped": self.dropped}


def check_seeds(config: SynthesisConfig) -> SeedSet:
    """Read and choose all seeds; raises `DataError` for a bad line, or if there is no seed."""
    seeds, digest, read = config.seeds, hashlib.sha256(), 0
    ranks, dropped = array("d"), Counter[str]()
    # Without requests nothing is paid for, so a bad line may as well be found later, and parsing is spared.
    check = bool(config.asked) or seeds.choosing
    for place, line in _rows(seeds):
        digest.update(line + b"\n")
        read += 1
        seed = _parse_seed(place, line, seeds.fields) if check else None
        if seed is None or not seeds.choosing:
            continue
        reason = drop_reason(seed, seeds.select) if seeds.select else None
        dropped.update([reason] if reason else [])
        ranks.append(math.inf if reason else id_rank(seed.id))
    chosen, left = np.zeros(len(ranks), np.uint8), read - dropped.total()
    chosen[np.argsort(ranks, kind="stable")[:left][: seeds.count]] = 1  # of equal ranks the first
    if seeds.count and seeds.count < left:
        dropped["not_in_count"] = left - seeds.count
    kept = chosen.tobytes() if seeds.choosing else None
    found = SeedSet(seeds, digest.hexdigest(), kept, read, dict(dropped))
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(dropped.items()))
    said = f"{read:,} records read, {found.count:,} selected" + (f", dropped: {reasons}" if reasons else "")
    if not read:
        raise DataError(f"{', '.join(seeds.paths)}: no seeds; give files of problems, one JSON object a line")
    if not found.count:
        raise DataError(f"seeds: none left ({said}); select more")
    _LOG.info("seeds: %s", said)
    return found


def read_seeds(found: SeedSet, shard: SeedShard) -> Iterator[tuple[int, Problem]]:
    """Stream (position over all seeds, seed) of this shard, in order of the files."""
    position = 0
    for number, (place, line) in enumerate(_rows(found.seeds)):
        if found.chosen is None or found.chosen[number]:
            if position % shard.count == shard.number:
                yield position, _parse_seed(place, line, found.seeds.fields)
            position += 1


def _rows(seeds: Seeds) -> Iterator[tuple[str, bytes]]:
    """Yield (file:line, JSON) of all records that are not blank; of an array or table, file:number."""
    for path in (path for given in seeds.paths for path in list_files(given, "seeds")):
        is_table = spelling(path).endswith((".parquet", ".arrow"))
        is_document, blocks = (False, iter(())) if is_table else open_json(path)
        if is_table or is_document:
            lines = _numbered(path, table_lines(path) if is_table else split_array(blocks))
        else:
            lines = numbered_lines(path)
        yield from ((f"{path}:{number}", line) for number, line in lines if line.strip())


def _numbered(path: Path, records: Iterator[bytes | DataError]) -> Iterator[tuple[int, bytes]]:
    number = 1
    try:
        for record in records:
            if isinstance(record, DataError):
                raise record
            yield number, record
            number += 1
    except DataError as error:
        raise DataError(f"{path}:{number}: {error}") from error


def _parse_seed(place: str, line: bytes, fields: dict[str, str]) -> Problem:
    if len(line) > _MOST_SEED_BYTES:
        raise DataError(f"{place}: seed of over {_MOST_SEED_BYTES >> 20} MiB; shorten or remove the line")
    try:
        row = flat_row(decode_object(line))
        given = {ours: row[theirs] for ours, theirs in fields.items() if theirs in row}
        row = {name: value for name, value in row.items() if name not in fields.values()} | given
        written = [name for name in ("id", "answer") if type(row.get(name)) in (int, float, Written)]
        row |= {name: str(row[name]) for name in written}
        for name in ("question", "solution", "answer"):
            if isinstance(text := row.get(name), str):
                row[name] = restore_commands(text) if text.strip() else ""
        row["id"] = row.get("id") or "/".join(Path(place).parts[-2:]).replace(":", "#")
        return problem_of_row(row)
    except ValidationError as error:
        wrong = ": ".join(filter(None, first_error(error)))
        raise DataError(f"{place}: seed's {wrong}; fix or remove the line") from error
    except (DataError, AttributeError, TypeError) as error:
        raise DataError(f"{place}: no JSON object in UTF-8 ({error}); fix or remove the line") from error
