"""Looking into a finished corpus: documents, drops, lengths, the way of one record; on a terminal or a page.

Nothing loads a corpus whole: places and indexes are mapped, JSON lines streamed or sought. Text of documents
is shown, never obeyed.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from rich.console import Console
from rich.table import Table

from megatron_mathcpt.data.filters import count_steps
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import (
    SPLITS,
    CorpusFolder,
    Kept,
    RawFile,
    Selection,
    corpus_counts,
    open_corpus,
)
from megatron_mathcpt.formats.indexed_dataset import read_document, read_lengths
from megatron_mathcpt.records import Problem

REJECTED = "rejected"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MOST_PROBLEMS = 20_000  # of a source, read to count their steps: evenly spaced ones of more
_MOST_STEPS = 15  # a bar each; more steps share the last
_PIPED_WIDTH = 140  # rich takes 80 columns where it sees no terminal
_BAR_WIDTH = 40
_MOST_SOURCES, _MOST_CONFIG = 200, 20_000  # of a page; characters of the config
# Control characters and marks of direction would steer the terminal or turn the text around.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
Row = dict[str, Any]
Bars = list[tuple[str, int]]


class Gone(NamedTuple):
    """A record that was not kept: `row` holds the reason, of a drop also its id and detail."""

    fate: str  # dropped or rejected
    pool: str
    shard: RawFile
    line: int
    row: Row


class Distribution(NamedTuple):
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

    def by_powers(self) -> Bars:
        """How many there are from one power of two to the next, as in `8–15`."""
        edges = [(1 << n >> 1, max(0, (1 << n) - 1)) for n in range(64)]
        labels = [f"{a:,}–{b:,}" if a < b else f"{a}" for a, b in edges]
        return self._bars([int(value).bit_length() for value in self.values], labels)

    def by_value(self) -> Bars:
        """How many there are of each value, those from `_MOST_STEPS` on as one, `15+`."""
        return self._bars(
            np.minimum(self.values, _MOST_STEPS), [*map(str, range(_MOST_STEPS)), f"{_MOST_STEPS}+"]
        )

    def _bars(self, slots: Any, labels: list[str]) -> Bars:
        heights = np.bincount(slots, self.counts)
        return [(labels[n], int(heights[n])) for n in range(slots[0], len(heights))]


def find_documents(
    corpus: CorpusFolder, selections: Sequence[Selection], number: int | None, record: str | None, limit: int
) -> Iterator[Kept]:
    """The first documents of `selections`, or the one with this number, or those with this id.

    Raises `ConfigError` when both are given, when a number could mean several pools, and for an unknown id.
    """
    if number is not None:
        if record is not None:
            raise ConfigError("give one of number and id")
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
            if kept := corpus.at(shard, int(line)):
                found.append(kept)
                continue
            gone = (one for fate in ("dropped", REJECTED) for one in _gone(corpus, fate, shard.name))
            found += [one for one in gone if (one.shard, one.line) == (shard, int(line))]
    else:
        found += [kept for pool in corpus.pools for kept in _kept(corpus, pool, record)]
        found += [one for one in _gone(corpus, "dropped", record) if one.row["id"] == record]
    if not found:
        names = ", ".join(dict.fromkeys(Path(shard.file).name for shard in corpus.shards[:8]))
        raise ConfigError(
            f"record '{record}': neither kept nor dropped in {corpus.root}; give the id of a record as its "
            f"source has it, or FILE:LINE, with one of the {len(corpus.shards)} files ({names}); blank lines "
            "are no records"
        )
    return found


def _kept(corpus: CorpusFolder, pool: str, record: str) -> Iterator[Kept]:
    rows = _scan(corpus.root / "documents" / f"{pool}.jsonl", record)
    return corpus.documents(pool, (number for number, row in rows if row["id"] == record))


def _gone(corpus: CorpusFolder, fate: str, text: str) -> Iterator[Gone]:
    shards = {shard.name: shard for shard in corpus.shards}
    for pool in corpus.pools:
        for _, row in _scan(corpus.root / fate / f"{pool}.jsonl", text):
            yield Gone(fate, pool, shards[row["shard"]], row["line"], row)


def _scan(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    """Number from 0 and content of each JSON line with the string `text`, or of all; others aren't parsed."""
    try:
        needle = orjson.dumps(text) if text else b""
    except orjson.JSONEncodeError as error:
        raise ConfigError(f"{text!r}: not valid UTF-8, so no record holds it") from error
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if needle in line:
                yield number, orjson.loads(line)


def drop_counts(corpus: CorpusFolder, source: str | None = None) -> dict[str, Counter[str]]:
    """Records by source and reason; rejected ones, which are unreadable, are counted as `rejected`."""
    return {
        name: +Counter({**row.dropped, REJECTED: row.rejected})
        for name, row in corpus_counts(corpus.manifest).sources.items()
        if source in (None, name)
    }


def drop_examples(corpus: CorpusFolder, reason: str, source: str | None, limit: int) -> Iterator[Gone]:
    """The first `limit` records that went for `reason`; reads no further than it must."""
    found = _gone(corpus, REJECTED, "") if reason == REJECTED else _gone(corpus, "dropped", reason)
    fits = (one for one in found if reason in (REJECTED, one.row["reason"]))
    return islice((one for one in fits if source in (None, one.shard.source)), limit)


def drop_detail(corpus: CorpusFolder, gone: Gone) -> Row:
    """What a record was dropped for: the document that stays, the hit, or the limit."""
    detail: Row = gone.row.get("detail") or {}
    if "kept" not in detail:
        return detail
    return {"stays": f"{detail['kept']}  {corpus.shard(detail['shard']).file}:{detail['line']}"}


def gather(parts: Iterable[npt.NDArray[Any]]) -> Distribution:
    """The distribution of all numbers, in memory that depends only on how many different ones there are."""
    found: Counter[int] = Counter()
    for part in parts:
        values, counts = np.unique(part, return_counts=True)
        found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return Distribution(*np.array(sorted(found.items()), np.int64).reshape(-1, 2).T)


def token_lengths(corpus: CorpusFolder, selection: Selection) -> Distribution:
    """Tokens of the selected documents, the end-of-text token counted."""
    rest = {n: read_lengths(corpus.dataset(selection.pool, split))[0] for n, split in SPLITS.items()}

    def parts() -> Iterator[npt.NDArray[Any]]:
        for _, block, chosen in corpus.blocks(selection):
            here = np.empty(len(block), np.int32)
            for split in SPLITS:
                inside = block["split"] == split
                here[inside], rest[split] = np.split(rest[split], [inside.sum()])
            yield here[chosen]

    return gather(parts())


def lengths(corpus: CorpusFolder, selection: Selection) -> Iterator[Row]:
    """The distributions of one source: tokens a document, and steps a problem where they are known.

    Steps are counted by the source's own rule if it has one, else they are its `field`.
    """
    tokens = token_lengths(corpus, selection)
    row: Row = {"source": selection.source, "unit": "tokens a document", "numbers": tokens}
    if tokens.total:
        yield row | {"title": "tokens, with the end-of-text token", "bars": tokens.by_powers()}
    source = corpus.manifest.config["sources"][selection.source]
    if source["kind"] != "problem":
        return
    rule: Any = (source["select"] or {}).get("step_rule") or "field"
    total = corpus.count(selection)
    read = min(total, _MOST_PROBLEMS)
    rows = (kept.row for kept in corpus.choose(selection, (n * total // read for n in range(read))))
    problems = (Problem(id=row["id"], source=row["source"], **row["problem"]) for row in rows)
    counted = [count_steps(one, rule) for one in problems]
    steps = gather([np.array([count for count in counted if count is not None], np.int64)])
    title = f"steps by '{rule}' of {read:,} problems, {read - steps.total:,} without"
    row |= {"unit": "steps a problem", "numbers": steps}
    yield row | {"title": title, "bars": steps.by_value() if steps.total else []}


class Screen:
    """Shows a corpus on a console that takes text as it is; `most` characters of a document (0: all)."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        self._console = Console(markup=False, emoji=False, highlight=False, width=width)
        self._corpus, self._most = open_corpus(folder), most

    def documents(
        self, names: Sequence[str | None], number: int | None, record: str | None, limit: int
    ) -> None:
        """Documents of a pool, source, split (None: all), each under a line that says where it stands."""
        for one in find_documents(self._corpus, self._corpus.selections(*names), number, record, limit):
            first, end = token_range(self._corpus, one)
            self._head(f"{one.pool} {one.number}")
            where = f"{one.shard.file}:{one.line}  {one.split} {one.index}, {end - first:,} tokens"
            self._say(f"{one.row['id']}  {where}", dim=True)
            self._text(one.row["text"])

    def drops(self, reason: str | None, source: str | None, limit: int) -> None:
        """Records by source and reason, then `limit` examples of each reason, or of `reason` only."""
        self._corpus.selections(None, source)
        counts, known = drop_counts(self._corpus, source), corpus_counts(self._corpus.manifest).sources
        reasons = sorted({name for row in counts.values() for name in row})
        if reason is not None and reason not in reasons:
            there = ", ".join(reasons) or "none"
            raise ConfigError(f"reason '{reason}': nothing was dropped for it; there is {there}")
        table = Table("source", title="Records that did not stay")
        for heading in ("read", "kept", *reasons):
            table.add_column(heading, justify="right")
        for name, row in counts.items():
            numbers = (known[name].read, known[name].kept, *(row[heading] for heading in reasons))
            table.add_row(name, *(f"{number:,}" for number in numbers))
        self._console.print(table)
        for name in reasons if reason is None else [reason]:
            self._head(name)
            for one in drop_examples(self._corpus, name, source, limit):
                self._say(f"{one.row['file']}:{one.line}  {one.row.get('id', '')}", dim=True)
                if name == REJECTED:
                    self._say(one.row["reason"])
                if detail := drop_detail(self._corpus, one):
                    self._say("; ".join(f"{key}: {value}" for key, value in detail.items()))
                if "text" in one.row:
                    self._text(one.row["text"])

    def lengths(self, pool: str | None, source: str | None) -> None:
        """Tokens a document and steps a problem of each source."""
        for row in (
            row for one in self._corpus.by_source(pool, source) for row in lengths(self._corpus, one)
        ):
            found, bars = row["numbers"], row["bars"]
            self._head(f"{row['source']}: {row['title']}")
            if not bars:
                continue
            names = {0.0: "least", 0.5: "median", 1.0: "most"}
            parts = [f"{names.get(q, f'{q:.0%}')} {found.quantile(q):,}" for q in QUANTILES]
            self._say(f"{found.total:,} in all, mean {found.mean:,.1f}; {', '.join(parts)}")
            widest, tallest = max(len(label) for label, _ in bars), max(count for _, count in bars)
            for label, count in bars:
                halves = -(-count * _BAR_WIDTH * 2 // tallest)  # at least one where there is a document
                drawn = "█" * (halves // 2) + "▌" * (halves % 2)
                self._say(f"{label:>{widest}}  {drawn:<{_BAR_WIDTH}}  {count:,}")

    def trace(self, record: str) -> None:
        """The way of each record with this id or place, a line a station."""
        for one in trace(self._corpus, record):
            lines: Row = {"id": one.row.get("id"), "source": one.shard.source}
            lines["raw"] = f"{one.shard.file}:{one.line}"
            if isinstance(one, Gone):
                self._head(one.pool)
                lines["fate"] = f"{one.fate}: {one.row['reason']}"
                lines |= drop_detail(self._corpus, one)
            else:
                self._head(f"{one.pool} {one.number}")
                first, end = token_range(self._corpus, one)
                lines["fate"] = "kept"
                lines["document"] = f"{self._corpus.root / 'documents' / one.pool}.jsonl, number {one.number}"
                lines["dataset"] = f"{self._corpus.dataset(one.pool, one.split)}, document {one.index}"
                lines["tokens"] = f"{first} up to, not including, {end}"
            for name, value in lines.items():
                if value is not None:
                    self._say(f"{name:<11}{value}")

    def _say(self, text: str, dim: bool = False) -> None:
        self._console.print(_visible(text), style="dim" if dim else None, soft_wrap=True)

    def _text(self, text: str) -> None:
        most = self._most or len(text)
        rest = f" … ({len(text) - most:,} more characters)" if len(text) > most else ""
        self._say(text[:most] + rest)

    def _head(self, text: str) -> None:
        self._console.rule(_visible(text), align="left")


def _visible(text: str) -> str:
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)  # as in \x1b


def page_content(corpus: CorpusFolder) -> Row:
    """Counts and distributions, bounded in size whatever the corpus: a mapping that a template can draw."""
    counts, dropped = corpus_counts(corpus.manifest), drop_counts(corpus)
    found = sorted(corpus.by_source(), key=lambda one: -counts.sources[str(one.source)].read)[:_MOST_SOURCES]
    return {
        "name": corpus.manifest.config["name"],
        "counts": counts,
        "sources": {str(one.source): (one.pool, dropped[str(one.source)]) for one in found},
        "lengths": [row for one in found for row in lengths(corpus, one) if row["bars"]],
        "shares": QUANTILES[1:],
        "manifest": corpus.manifest,
        "config": json.dumps(corpus.manifest.config, indent=1, ensure_ascii=False)[:_MOST_CONFIG],
    }
