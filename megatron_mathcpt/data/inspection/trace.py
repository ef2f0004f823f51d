"""The way of one record, by its id or by raw file and line: what became of it, and where it stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.data.inspection.scan import json_bytes, scan_rows
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept, RawFile


@dataclass(frozen=True)
class Gone:
    """A record that was not kept: `row` holds the reason, of a drop also its id and detail."""

    fate: str  # dropped or rejected
    pool: str
    shard: RawFile
    line: int
    row: dict[str, Any]


def trace(corpus: CorpusFolder, record: str) -> list[Kept | Gone]:
    """All records with this id, or, for `FILE:LINE`, made of that line or row of a raw file.

    Raises `ConfigError` when there is none.
    """
    file, _, line = record.rpartition(":")
    shards = [shard for shard in corpus.shards if file in (shard.file, Path(shard.file).name)]
    if shards and line.isdecimal():
        found = [one for shard in shards for one in _at(corpus, shard, int(line))]
    else:
        needle = b'"id":' + json_bytes(record)
        dropped = (one for one in _gone(corpus, needle, ("dropped",)) if one.row["id"] == record)
        found = [*_kept(corpus, needle, record), *dropped]
    if not found:
        names = ", ".join(dict.fromkeys(Path(shard.file).name for shard in corpus.shards[:8]))
        raise ConfigError(
            f"record '{record}': neither kept nor dropped in {corpus.root}; give the id of a record as its "
            f"source has it, or FILE:LINE, with one of the {len(corpus.shards)} files ({names}); blank lines "
            "are no records"
        )
    return found


def _kept(corpus: CorpusFolder, needle: bytes, record: str) -> Iterator[Kept]:
    for pool in corpus.pools:
        rows = scan_rows(corpus.root / "documents" / f"{pool}.jsonl", needle)
        yield from corpus.documents(pool, (number for number, row in rows if row["id"] == record))


def _at(corpus: CorpusFolder, shard: RawFile, line: int) -> list[Kept | Gone]:
    kept = corpus.at(shard, line)
    if kept is not None:
        return [kept]
    needle = b'"shard":%b,"file":%b,"line":%d,' % (json_bytes(shard.name), json_bytes(shard.file), line)
    found = _gone(corpus, needle, ("dropped", "rejected"))
    return [one for one in found if (one.shard, one.line) == (shard, line)]


def _gone(corpus: CorpusFolder, needle: bytes, fates: tuple[str, ...]) -> Iterator[Gone]:
    for fate in fates:
        for pool in corpus.pools:
            for _, row in scan_rows(corpus.root / fate / f"{pool}.jsonl", needle):
                yield Gone(fate, pool, corpus.shard(row["shard"]), row["line"], row)
