"""The texts of files of any kind that a corpus build reads, in order and without loss.

Where a build counts an unreadable record and goes ahead, here the first one is an error: what is tokenized
without a build, or compared with a benchmark, has no report of what was left out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.sources import NumberedRow, Skipped, SourceShard, at_hand, list_shards, read_rows
from megatron_mathcpt.data.words import MAX_WORD, has_long_word
from megatron_mathcpt.errors import ConfigError, DataError, first_error
from megatron_mathcpt.formats.archives import spelling
from megatron_mathcpt.formats.files import TEXTS, read_range

_PART_BYTES = 128e6  # of a plain file, after which its position is known
_SHOWN_KEYS = 12
Texts = tuple[int, list[list[str]]]  # of each field; before them, how many bytes of files were read whole
_KINDS: dict[type, str] = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}


def list_inputs(paths: Sequence[str]) -> list[SourceShard]:
    """All files of these files, folders, globs and addresses, in this order; big ones in parts."""
    shards = list[SourceShard]()
    for path in paths:
        try:
            source = Source(pool="documents", path=path)
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_error(error)[1]}") from error
        shards += list_shards({"documents": source}, _PART_BYTES)
    return shards


def read_texts(shards: Sequence[SourceShard], fields: Sequence[str]) -> Iterator[Texts]:
    """Blocks of the texts in each of `fields`; `DataError` for the first record that has no such text."""
    done, first = 0, 1
    for shard in shards:
        first = first if shard.part and shard.part.number else 1
        with TemporaryDirectory() as folder, at_hand(shard, Path(folder) / "fetched") as here:
            for rows in read_rows(here, first):
                yield done, [_column(here, rows, field) for field in fields]
        if shard.part and shard.part.rows is None:  # where the next part's lines begin
            first += sum(data.count(b"\n") for data in read_range(shard.path, shard.part.span))
        done += shard.bytes


def _column(shard: SourceShard, rows: list[NumberedRow | Skipped], field: str) -> list[str]:
    found = [row[1].get(field) if isinstance(row, tuple) else None for row in rows]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(rows) or max(map(len, texts)) >= MAX_WORD:
        for row in rows:
            _check(shard, row, field)
    return texts


def _check(shard: SourceShard, row: NumberedRow | Skipped, field: str) -> None:
    """Raise `DataError` if `row` has no text in `field`, or one that no tokenizer takes."""
    if isinstance(row, Skipped):
        raise DataError(f"{_place(shard, row.line)}: {row.reason}; fix or remove the record")
    line, record = row
    text, place = record.get(field), _place(shard, line)
    if not isinstance(text, str):
        keys = ", ".join([*record][:_SHOWN_KEYS]) or "none"
        if field not in record:
            raise DataError(f"{place}: no key '{field}'; its keys are {keys}")
        found = _KINDS.get(type(text), "a number")
        raise DataError(f"{place}: '{field}' is {found}, expected text; its keys are {keys}")
    if has_long_word(text):
        raise DataError(f"{place}: a word of {MAX_WORD:,} characters; split the record")


def _place(shard: SourceShard, line: int) -> str:
    if spelling(shard.files[0]).endswith(TEXTS):
        return shard.place if shard.path == shard.files[0] else f"{shard.place}/{shard.files[line - 1].name}"
    return f"{shard.place}:{line}"
