"""Looking into a finished corpus: its documents, its drops, its lengths, and the way of one record.

Nothing loads a corpus whole: places and indexes are mapped, JSON lines streamed or sought.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.data.filters import count_steps
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import (
    SPLITS,
    CorpusFolder,
    Kept,
    RawFile,
    Selection,
    corpus_counts,
)
from megatron_mathcpt.formats.indexed_dataset import read_document, read_lengths
from megatron_mathcpt.records import Problem

REJECTED = "rejected"
Bar = tuple[str, int]  # values, and how many there are
_MOST_PROBLEMS = 20_000  # of a source, read to count their steps: evenly spaced ones of more
_MOST_STEPS = 15  # a bar each; more steps share the last


@dataclass(frozen=True)
class Gone:
    """A record that was not kept: `row` holds the reason, of a drop also its id and detail."""

    fate: str  # dropped or rejected
    pool: str
    shard: RawFile
    line: int
    row: dict[str, Any]


@dataclass(frozen=True)
class Distribution:
    """Whole numbers by value: `counts[i]` times `values[i]`, ascending."""

    values: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many numbers."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean."""
        return float((self.values * self.counts).sum() / self.total)

    def quantile(self, share: float) -> int:
        """The smallest value that at least `share` of the numbers do not exceed."""
        needed = max(1, int(np.ceil(share * self.total - 1e-9)))
        return int(self.values[np.searchsorted(np.cumsum(self.counts), needed)])

    def by_powers(self) -> list[Bar]:
        """Bars from one power of two to the next, as in `8–15`."""
        first, last = (int(self.values[end]).bit_length() for end in (0, -1))
        edges = [(1 << (n - 1) if n else 0, (1 << n) - 1) for n in range(first, last + 1)]
        return [(f"{a:,}–{b:,}" if a < b else f"{a}", self._between(a, b)) for a, b in edges]

    def by_value(self) -> list[Bar]:
        """A bar a value, those from `_MOST_STEPS` on in one, as in `15+`."""
        first, last = (int(self.values[end]) for end in (0, -1))
        bars = [(str(n), self._between(n, n)) for n in range(first, min(last + 1, _MOST_STEPS))]
        rest = self._between(_MOST_STEPS, last)
        return [*bars, (f"{_MOST_STEPS}+", rest)] if rest else bars

    def _between(self, low: int, high: int) -> int:
        return int(self.counts[(self.values >= low) & (self.values <= high)].sum())


def find_documents(
    corpus: CorpusFolder, selections: Sequence[Selection], number: int | None, record: str | None, limit: int
) -> Iterator[Kept]:
    """The first documents of `selections`, or the one with this number, or those with this id.

    Raises `ConfigError` when number and id are given, when a number could mean several pools, and when
    there is no such document.
    """
    if number is not None and record is not None:
        raise ConfigError("give one of number and id")
    if number is not None:
        if len(selections) > 1:
            pools = ", ".join(selection.pool for selection in selections)
            raise ConfigError(f"number {number}: name a pool or source too; there is {pools}")
        return corpus.choose(selections[0], [number])
    if record is None:
        first = (corpus.choose(one, range(min(limit, corpus.count(one)))) for one in selections)
        return islice(chain.from_iterable(first), limit)
    found = [
        kept
        for one in selections
        for kept in _kept(corpus, one.pool, record)
        if one.source in (None, kept.shard.source) and one.split in (None, kept.split)
    ]
    if not found:
        names = "; ".join(map(str, selections))
        raise ConfigError(f"id '{record}': no kept document of {names}; 'trace' tells what became of it")
    return islice(found, limit)


def token_range(corpus: CorpusFolder, kept: Kept) -> tuple[int, int]:
    """First token of a document in its dataset, and the one after its end-of-text token."""
    first, ids = read_document(corpus.dataset(kept.pool, kept.split), kept.index)
    return first, first + len(ids)


def trace(corpus: CorpusFolder, record: str) -> list[Kept | Gone]:
    """All records with this id, or, for `FILE:LINE`, made of that line or row of a raw file.

    Raises `ConfigError` when there is none.
    """
    file, _, line = record.rpartition(":")
    shards = [shard for shard in corpus.shards if file in (shard.file, Path(shard.file).name)]
    found: list[Kept | Gone] = []
    if shards and line.isdecimal():
        for shard in shards:
            found += _at(corpus, shard, int(line))
    else:
        for pool in corpus.pools:
            found += _kept(corpus, pool, record)
        found += [one for one in _gone(corpus, "dropped", _json(record)) if one.row["id"] == record]
    if not found:
        names = ", ".join(dict.fromkeys(Path(shard.file).name for shard in corpus.shards[:8]))
        raise ConfigError(
            f"record '{record}': neither kept nor dropped in {corpus.root}; give the id of a record as its "
            f"source has it, or FILE:LINE, with one of the {len(corpus.shards)} files ({names}); blank lines "
            "are no records"
        )
    return found


def _kept(corpus: CorpusFolder, pool: str, record: str) -> Iterator[Kept]:
    rows = _scan(corpus.root / "documents" / f"{pool}.jsonl", b'"id":' + _json(record))
    return corpus.documents(pool, (number for number, row in rows if row["id"] == record))


def _at(corpus: CorpusFolder, shard: RawFile, line: int) -> list[Kept | Gone]:
    if kept := corpus.at(shard, line):
        return [kept]
    found = (one for fate in ("dropped", REJECTED) for one in _gone(corpus, fate, _json(shard.name)))
    return [one for one in found if (one.shard, one.line) == (shard, line)]


def _gone(corpus: CorpusFolder, fate: str, needle: bytes = b"") -> Iterator[Gone]:
    shards = {shard.name: shard for shard in corpus.shards}
    for pool in corpus.pools:
        for _, row in _scan(corpus.root / fate / f"{pool}.jsonl", needle):
            yield Gone(fate, pool, shards[row["shard"]], row["line"], row)


def _json(text: str) -> bytes:
    """`text` as it stands in our JSON files, in quotes; raises `ConfigError` if it cannot stand there."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError as error:
        raise ConfigError(f"{text!r}: not valid UTF-8, so no record holds it") from error


def _scan(path: Path, needle: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 0 and content of each JSON line that holds `needle`; the others are not parsed."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if needle in line:
                yield number, orjson.loads(line)


def drop_counts(corpus: CorpusFolder, source: str | None = None) -> dict[str, Counter[str]]:
    """Records by source and reason; rejected ones, which are unreadable, are counted as `rejected`."""
    rows = corpus_counts(corpus.manifest).sources.items()
    return {
        name: +Counter({**row.dropped, REJECTED: row.rejected})
        for name, row in rows
        if source in (None, name)
    }


def reasons_of(corpus: CorpusFolder, source: str | None, reason: str | None) -> list[str]:
    """All reasons of a source, or the one asked for; raises `ConfigError` if nothing was dropped for it."""
    found = sorted({name for row in drop_counts(corpus, source).values() for name in row})
    if reason is not None and reason not in found:
        raise ConfigError(
            f"reason '{reason}': nothing was dropped for it; there is {', '.join(found) or 'none'}"
        )
    return found if reason is None else [reason]


def drop_examples(
    corpus: CorpusFolder, reason: str, source: str | None = None, limit: int = 3
) -> Iterator[Gone]:
    """The first `limit` records that went for `reason`; reads no further than it must."""
    counts = drop_counts(corpus, source)
    total = sum(row[reason] for row in counts.values())
    rejected = reason == REJECTED
    found = _gone(corpus, REJECTED if rejected else "dropped", b"" if rejected else _json(reason))
    fits = (one for one in found if one.shard.source in counts and (rejected or one.row["reason"] == reason))
    return islice(fits, min(limit, total))


def drop_detail(corpus: CorpusFolder, gone: Gone) -> dict[str, Any]:
    """What a record was dropped for: the document that stays, the hit, or the limit."""
    detail: dict[str, Any] = gone.row.get("detail") or {}
    if "kept" not in detail:
        return detail
    return {"stays": f"{detail['kept']}  {corpus.shard(detail['shard']).file}:{detail['line']}"}


def gather(parts: Iterable[npt.NDArray[Any]]) -> Distribution:
    """The distribution of all numbers, in memory that depends only on how many different ones there are."""
    found: Counter[int] = Counter()
    for part in parts:
        values, counts = np.unique(part, return_counts=True)
        found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    ordered = sorted(found.items())
    return Distribution(*(np.array([one[n] for one in ordered], np.int64) for n in (0, 1)))


def token_lengths(corpus: CorpusFolder, selection: Selection) -> Distribution:
    """Tokens of the selected documents, the end-of-text token counted."""
    sets = [read_lengths(corpus.dataset(selection.pool, split))[0] for split in SPLITS.values()]

    def parts() -> Iterator[npt.NDArray[Any]]:
        done = [0] * len(sets)
        for _, block, chosen in corpus.blocks(selection):
            here = np.empty(len(block), np.int32)
            for split, lengths in enumerate(sets):
                inside = block["split"] == split
                count = int(inside.sum())
                here[inside] = lengths[done[split] : done[split] + count]
                done[split] += count
            yield here[chosen]

    return gather(parts())


def step_counts(corpus: CorpusFolder, selection: Selection) -> tuple[str, int, Distribution] | None:
    """Rule, problems read, and steps where they are known, of a source; None: it has no problems.

    The rule is the source's own if it has one, else `field`.
    """
    source = corpus.manifest.config["sources"][selection.source]
    rule: Any = (source["select"] or {}).get("step_rule") or "field"
    if source["kind"] != "problem":
        return None
    total = corpus.count(selection)
    read = min(total, _MOST_PROBLEMS)
    rows = (kept.row for kept in corpus.choose(selection, (n * total // read for n in range(read))))
    problems = (Problem(id=row["id"], source=row["source"], **row["problem"]) for row in rows)
    known = [steps for one in problems if (steps := count_steps(one, rule)) is not None]
    return rule, read, gather([np.array(known, np.int64)])
