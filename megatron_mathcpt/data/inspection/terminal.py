"""What the inspection finds, on a terminal. Text of documents is shown, never obeyed."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_mathcpt.data.inspection.copies import Group, rule
from megatron_mathcpt.data.inspection.drops import REJECTED, drop_counts
from megatron_mathcpt.data.inspection.lengths import QUANTILES, Bar, Distribution, Steps
from megatron_mathcpt.data.inspection.tokens import read_tokens, token_range
from megatron_mathcpt.data.inspection.trace import Gone
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept

_PIPED_WIDTH = 140  # rich takes 80 columns where it sees no terminal
_BAR_WIDTH = 40
# Control characters and marks of direction would steer the terminal or turn the text around.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


class Screen:
    """A console that takes text as it is; of long documents it shows `most` characters (0: all)."""

    def __init__(self, most: int) -> None:
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        self.console = Console(markup=False, emoji=False, highlight=False, width=width)
        self._most = most

    def documents(self, corpus: CorpusFolder, kept: Iterable[Kept], tokens: bool) -> None:
        """Each document under a line that says where it stands."""
        for one in kept:
            first, end = token_range(corpus, one)
            self._head(f"{one.pool} {one.number}")
            where = f"{one.shard.file}:{one.line}  {one.split} {one.index}, {end - first:,} tokens"
            self._say(f"{one.row['id']}  {where}", dim=True)
            if tokens:
                self._tokens(corpus, one)
            else:
                self._text(one.row["text"])

    def drops(self, corpus: CorpusFolder, source: str | None) -> None:
        """Records by source and reason."""
        counts = drop_counts(corpus, source)
        reasons = sorted({reason for row in counts.values() for reason in row})
        table = Table("source", title="Records that did not stay")
        for heading in ("read", "kept", *reasons):
            table.add_column(heading, justify="right")
        for name, row in counts.items():
            known = corpus.report["sources"][name]
            numbers = (known["read"], known["kept"], *(row[reason] for reason in reasons))
            table.add_row(name, *(f"{number:,}" for number in numbers))
        self.console.print(table)

    def examples(self, corpus: CorpusFolder, reason: str, rows: Iterable[dict[str, Any]]) -> None:
        """Records that went for one reason."""
        self._head(reason)
        for row in rows:
            self._say(f"{row['file']}:{row['line']}  {row.get('id', '')}", dim=True)
            if reason == REJECTED:
                self._say(row["reason"])
            if "detail" in row:
                self._say("; ".join(f"{name}: {value}" for name, value in _detail(corpus, row).items()))
            if "text" in row:
                self._text(row["text"])

    def distribution(self, title: str, found: Distribution, bars: Sequence[Bar]) -> None:
        """Quantiles and a histogram."""
        self._head(title)
        names = {0.0: "least", 0.5: "median", 1.0: "most"}
        parts = [f"{names.get(q, f'{q:.0%}')} {found.quantile(q):,}" for q in QUANTILES]
        self._say(f"{found.total:,} in all, mean {found.mean:,.1f}; {', '.join(parts)}")
        widest, tallest = max(len(bar.label) for bar in bars), max(bar.count for bar in bars)
        for bar in bars:
            halves = -(-bar.count * _BAR_WIDTH * 2 // tallest)  # at least one where there is a document
            drawn = "█" * (halves // 2) + "▌" * (halves % 2)
            self._say(f"{bar.label:>{widest}}  {drawn:<{_BAR_WIDTH}}  {bar.count:,}")

    def steps(self, source: str, found: Steps) -> None:
        """Steps of a source's problems."""
        title = f"{source}: steps by '{found.rule}' of {found.read:,} problems, {found.unknown:,} without"
        if found.steps is None:
            self._head(title)
        else:
            self.distribution(title, found.steps, found.steps.by_value())

    def group(self, corpus: CorpusFolder, group: Group) -> None:
        """A document that stays, and its copies from the most alike to the least."""
        kept, threshold = group.kept, rule(corpus)["threshold"]
        self._head(f"{kept.row['id']} stays; copies: {len(group.copies)}")
        self._say(f"{kept.pool} {kept.number}  {kept.shard.file}:{kept.line}", dim=True)
        self._text(kept.row["text"])
        for copy in group.copies:
            row = copy.row
            note = "" if copy.jaccard >= threshold else f"  (below {threshold}: alike by way of another copy)"
            self._head(f"{row['id']}: {row['reason']}, Jaccard about {copy.jaccard:.2f}")
            self._say(f"{copy.pool}  {row['file']}:{row['line']}{note}", dim=True)
            self._text(row["text"])

    def hits(self, counts: dict[str, tuple[int, int]], rows: Sequence[dict[str, Any]]) -> None:
        """Items and hits of each benchmark, then the documents that went."""
        table = Table("benchmark", title="Decontamination")
        for heading in ("items", "documents dropped"):
            table.add_column(heading, justify="right")
        for name, (items, hits) in counts.items():
            table.add_row(visible(name), f"{items:,}", f"{hits:,}")
        self.console.print(table)
        for row in rows:
            hit = row["detail"]
            masked = ", numbers masked" if hit["masked"] else ""
            self._say(f"{row['id']}  {row['file']}:{row['line']}")
            what = f"{hit['benchmark']} {hit['item']}, {hit['share']:.0%} of its n-grams{masked}"
            self._say(f"  {what}: {hit['ngram']}")

    def trace(self, corpus: CorpusFolder, found: Kept | Gone) -> None:
        """The way of one record, a line a station."""
        lines: dict[str, Any] = {"id": found.row.get("id"), "source": found.shard.source}
        lines["raw"] = f"{found.shard.file}:{found.line}"
        if isinstance(found, Gone):
            self._head(found.pool)
            lines["fate"] = f"{found.fate}: {found.row['reason']}"
            lines |= _detail(corpus, found.row)
        else:
            self._head(f"{found.pool} {found.number}")
            first, end = token_range(corpus, found)
            lines["fate"] = "kept"
            lines["document"] = f"{corpus.root / 'documents' / found.pool}.jsonl, number {found.number}"
            lines["dataset"] = f"{corpus.dataset(found.pool, found.split)}, document {found.index}"
            lines["tokens"] = f"{first} up to, not including, {end}"
        for name, value in lines.items():
            if value is not None:
                self._say(f"{name:<11}{value}")

    def _tokens(self, corpus: CorpusFolder, kept: Kept) -> None:
        """The document as its dataset decodes, a bar between two tokens."""
        tokens = read_tokens(corpus, kept)
        shown, size = [], 0
        for piece in tokens.pieces:
            if self._most and size >= self._most:
                break
            size += len(piece.text)
            shown.append(visible(piece.text) + (f"({len(piece.ids)})" if len(piece.ids) > 1 else ""))
        rest = sum(len(piece.ids) for piece in tokens.pieces[len(shown) :])
        self._say("│".join(shown) + (f" … ({rest:,} more tokens)" if rest else ""))
        same = "the" if tokens.text == kept.row["text"] else "NOT the"
        self._say(f"This decodes to {same} text of the document; (n) is one character in n tokens.", dim=True)

    def _text(self, text: str) -> None:
        most = self._most or len(text)
        rest = f" … ({len(text) - most:,} more characters)" if len(text) > most else ""
        self._say(text[:most] + rest)

    def _say(self, text: str, dim: bool = False) -> None:
        self.console.print(visible(text), style="dim" if dim else None, soft_wrap=True)

    def _head(self, text: str) -> None:
        self.console.rule(visible(text), align="left")


def _detail(corpus: CorpusFolder, row: dict[str, Any]) -> dict[str, Any]:
    """What a dropped record was dropped for: the document that stays, or the hit."""
    detail: dict[str, Any] = row.get("detail", {})
    if "kept" not in detail:
        return detail
    return {"stays": f"{detail['kept']}  {corpus.shard(detail['shard']).file}:{detail['line']}"}


def visible(text: str) -> str:
    """`text` with hidden characters spelled out, as in `\\x1b`."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)
