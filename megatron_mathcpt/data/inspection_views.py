"""What a look into a corpus shows: lines on a terminal, or the content of its page.

Text of documents is shown, never obeyed.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_mathcpt.data.inspection import (
    REJECTED,
    Bar,
    Distribution,
    Gone,
    drop_counts,
    drop_detail,
    step_counts,
    token_lengths,
    token_range,
)
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept, Selection, corpus_counts

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_PIPED_WIDTH = 140  # rich takes 80 columns where it sees no terminal
_BAR_WIDTH = 40
_MOST_SOURCES, _MOST_CONFIG = 200, 20_000  # of a page; characters of the config
# Control characters and marks of direction would steer the terminal or turn the text around.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
Row = dict[str, Any]


def visible(text: str) -> str:
    """`text` with hidden characters spelled out, as in `\\x1b`."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


class Screen:
    """A console that takes text as it is; of long documents it shows `most` characters (0: all)."""

    def __init__(self, most: int = 0) -> None:
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        self._console = Console(markup=False, emoji=False, highlight=False, width=width)
        self._most = most

    def documents(self, corpus: CorpusFolder, kept: Iterable[Kept]) -> None:
        """Each document under a line that says where it stands."""
        for one in kept:
            first, end = token_range(corpus, one)
            self._head(f"{one.pool} {one.number}")
            where = f"{one.shard.file}:{one.line}  {one.split} {one.index}, {end - first:,} tokens"
            self.say(f"{one.row['id']}  {where}", dim=True)
            self._text(one.row["text"])

    def drops(self, corpus: CorpusFolder, source: str | None) -> None:
        """Records by source and reason."""
        counts = drop_counts(corpus, source)
        reasons = sorted({reason for row in counts.values() for reason in row})
        table = Table("source", title="Records that did not stay")
        for heading in ("read", "kept", *reasons):
            table.add_column(heading, justify="right")
        for name, row in counts.items():
            known = corpus_counts(corpus.manifest).sources[name]
            numbers = (known.read, known.kept, *(row[reason] for reason in reasons))
            table.add_row(name, *(f"{number:,}" for number in numbers))
        self._console.print(table)

    def examples(self, corpus: CorpusFolder, reason: str, examples: Iterable[Gone]) -> None:
        """Records that went for one reason."""
        self._head(reason)
        for one in examples:
            self.say(f"{one.row['file']}:{one.line}  {one.row.get('id', '')}", dim=True)
            if reason == REJECTED:
                self.say(one.row["reason"])
            if detail := drop_detail(corpus, one):
                self.say("; ".join(f"{name}: {value}" for name, value in detail.items()))
            if "text" in one.row:
                self._text(one.row["text"])

    def lengths(self, corpus: CorpusFolder, selection: Selection) -> None:
        """Tokens a document and steps a problem of one source."""
        if (found := token_lengths(corpus, selection)).total:
            title = f"{selection.source}: tokens, with the end-of-text token"
            self._distribution(title, found, found.by_powers())
        if counted := step_counts(corpus, selection):
            rule, read, steps = counted
            title = (
                f"{selection.source}: steps by '{rule}' of {read:,} problems, {read - steps.total:,} without"
            )
            self._distribution(title, steps, steps.by_value() if steps.total else [])

    def trace(self, corpus: CorpusFolder, found: Kept | Gone) -> None:
        """The way of one record, a line a station."""
        lines: Row = {"id": found.row.get("id"), "source": found.shard.source}
        lines["raw"] = f"{found.shard.file}:{found.line}"
        if isinstance(found, Gone):
            self._head(found.pool)
            lines["fate"] = f"{found.fate}: {found.row['reason']}"
            lines |= drop_detail(corpus, found)
        else:
            self._head(f"{found.pool} {found.number}")
            first, end = token_range(corpus, found)
            lines["fate"] = "kept"
            lines["document"] = f"{corpus.root / 'documents' / found.pool}.jsonl, number {found.number}"
            lines["dataset"] = f"{corpus.dataset(found.pool, found.split)}, document {found.index}"
            lines["tokens"] = f"{first} up to, not including, {end}"
        for name, value in lines.items():
            if value is not None:
                self.say(f"{name:<11}{value}")

    def say(self, text: str, dim: bool = False) -> None:
        """One line, hidden characters spelled out."""
        self._console.print(visible(text), style="dim" if dim else None, soft_wrap=True)

    def _distribution(self, title: str, found: Distribution, bars: list[Bar]) -> None:
        self._head(title)
        if not bars:
            return
        names = {0.0: "least", 0.5: "median", 1.0: "most"}
        parts = [f"{names.get(q, f'{q:.0%}')} {found.quantile(q):,}" for q in QUANTILES]
        self.say(f"{found.total:,} in all, mean {found.mean:,.1f}; {', '.join(parts)}")
        widest, tallest = max(len(label) for label, _ in bars), max(count for _, count in bars)
        for label, count in bars:
            halves = -(-count * _BAR_WIDTH * 2 // tallest)  # at least one where there is a document
            drawn = "█" * (halves // 2) + "▌" * (halves % 2)
            self.say(f"{label:>{widest}}  {drawn:<{_BAR_WIDTH}}  {count:,}")

    def _text(self, text: str) -> None:
        most = self._most or len(text)
        rest = f" … ({len(text) - most:,} more characters)" if len(text) > most else ""
        self.say(text[:most] + rest)

    def _head(self, text: str) -> None:
        self._console.rule(visible(text), align="left")


def page_content(corpus: CorpusFolder) -> Row:
    """Counts and distributions, bounded in size whatever the corpus: a mapping that a template can draw."""
    counts, dropped = corpus_counts(corpus.manifest), drop_counts(corpus)
    found = sorted(corpus.by_source(), key=lambda one: -counts.sources[str(one.source)].read)[:_MOST_SOURCES]
    return {
        "name": corpus.manifest.config["name"],
        "counts": counts,
        "sources": {str(one.source): (one.pool, dropped[str(one.source)]) for one in found},
        "lengths": [row for one in found for row in _lengths(corpus, one)],
        "manifest": corpus.manifest,
        "config": json.dumps(corpus.manifest.config, indent=1, ensure_ascii=False)[:_MOST_CONFIG],
    }


def _lengths(corpus: CorpusFolder, selection: Selection) -> Iterator[Row]:
    """The distributions of one source, by what is counted."""
    tokens, counted = token_lengths(corpus, selection), step_counts(corpus, selection)
    found = [("tokens a document", tokens, Distribution.by_powers)]
    found += [("steps a problem", counted[2], Distribution.by_value)] if counted else []
    for unit, values, bars in found:
        if values.total:
            yield {
                "source": selection.source,
                "unit": unit,
                "total": values.total,
                "mean": values.mean,
                "quantiles": [values.quantile(share) for share in QUANTILES[1:]],
                "bars": bars(values),
            }
