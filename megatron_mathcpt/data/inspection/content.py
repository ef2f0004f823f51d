"""What the page of a corpus shows, bounded in size whatever the corpus: a mapping that templates can draw."""

import html
import json
import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from megatron_mathcpt.data.inspection.copies import likeness, original
from megatron_mathcpt.data.inspection.drops import (
    CONTAMINATED,
    REJECTED,
    benchmark_counts,
    contaminated,
    drop_counts,
    sample_drops,
)
from megatron_mathcpt.data.inspection.lengths import Bar, Distribution, step_counts, token_lengths
from megatron_mathcpt.data.inspection.tokens import token_range
from megatron_mathcpt.formats.corpus_folder import CorpusFolder

MOST_BYTES = {"documents": 700_000, "pairs": 300_000, "hits": 150_000}  # of HTML
_MOST_CHARACTERS = 1500  # of a document
_MOST_SHORT = 300  # of an id, a name, an n-gram
_PAIR_CHARACTERS = 1000
_PAIRS, _HITS, _PLOTS, _ROWS, _CONFIG = 20, 300, 24, 200, 20_000
_DOCUMENTS = 160  # kept ones of all sources, and as many others of all reasons
_NEAR = "near_duplicate"
# A word, a run of spaces, or a single other character.
_WORD = re.compile(r"\s+|[A-Za-z0-9_]+|.", re.DOTALL)
Row = dict[str, Any]
Item = TypeVar("Item")


def page_content(corpus: CorpusFolder) -> Row:
    """Counts, distributions, a sample of documents, hits and pairs of duplicates."""
    counts, rows = drop_counts(corpus), corpus.report["sources"]
    each = max(1, _DOCUMENTS // max(1, sum(map(len, counts.values()))))
    dropped = list(sample_drops(corpus, max(each, _PAIRS)))
    sources = sorted(corpus.by_source(), key=lambda one: -rows[one.source]["read"])[:_ROWS]
    benchmarks = list(benchmark_counts(corpus).items())[:_ROWS] if corpus.report["benchmarks"] else []
    hits = contaminated(corpus, limit=_HITS) if benchmarks else []
    pairs = [row for _, reason, row in dropped if reason == _NEAR]
    manifest = corpus.manifest
    return {
        "name": manifest.config["name"],
        "read": sum(row["read"] for row in rows.values()),
        "kept": sum(row["kept"] for row in rows.values()),
        "all_sources": len(rows),
        "sources": {
            name: {**rows[name], "pool": one.pool, "reasons": counts[name]}
            for one in sources
            for name in [str(one.source)]
        },
        "pools": dict(list(corpus.report["pools"].items())[:_ROWS]),
        "lengths": _lengths(corpus, sources),
        "most_plots": _PLOTS,
        "documents": _bounded("documents", _documents(corpus, dropped, each)),
        "benchmarks": [{"name": _short(n), "items": i, "documents": d} for n, (i, d) in benchmarks],
        "hits": _bounded("hits", map(_hit, hits)),
        "pairs": _bounded("pairs", (_pair(corpus, row) for row in _spread(pairs, _PAIRS))),
        "near_duplicates": sum(row[_NEAR] for row in counts.values()),
        "config": json.dumps(manifest.config, indent=1, ensure_ascii=False)[:_CONFIG],
        "tokenizer": corpus.report["tokenizer"],
        "versions": manifest.versions,
        "commit": manifest.commit,
        "created": manifest.created,
    }


def _lengths(corpus: CorpusFolder, sources: list[Any]) -> list[Row]:
    """Tokens and steps of each source that has documents, on one scale of tokens."""
    found = [(one, tokens) for one in sources if (tokens := token_lengths(corpus, one)).total]
    least = min((tokens.quantile(0.0) for _, tokens in found), default=0)
    most = max((tokens.quantile(1.0) for _, tokens in found), default=0)
    rows = []
    for number, (selection, tokens) in enumerate(found):
        row: Row = {"source": selection.source, "tokens": _summary(tokens, tokens.by_powers(least, most))}
        if number < _PLOTS and (counted := step_counts(corpus, selection)):
            row["rule"], row["read"], row["unknown"] = counted.rule, counted.read, counted.unknown
            if counted.steps is not None:
                row["steps"] = _summary(counted.steps, counted.steps.by_value())
        rows.append(row)
    return rows


def _summary(found: Distribution, bars: Iterable[Bar]) -> Row:
    shares = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return {
        "total": found.total,
        "mean": found.mean,
        "quantiles": [found.quantile(share) for share in shares],
        "bars": [{"low": bar.low, "label": bar.label, "count": bar.count} for bar in bars],
    }


def _documents(corpus: CorpusFolder, dropped: list[tuple[str, str, Row]], each: int) -> Iterator[Row]:
    """Kept documents of each source in turn, between them others of each reason in turn."""
    gone: dict[tuple[str, str], list[Row]] = {}
    for source, reason, row in dropped:
        gone.setdefault((source, reason), []).append(row)
    groups: list[Iterable[Row]] = [_kept_sample(corpus, selection) for selection in corpus.by_source()]
    groups += [[_gone(*key, row) for row in _spread(rows, each)] for key, rows in gone.items()]
    turns = chain.from_iterable(zip_longest(*groups))
    return (row for row in turns if row is not None)


def _kept_sample(corpus: CorpusFolder, selection: Any) -> Iterator[Row]:
    total = corpus.count(selection)
    taken = min(total, max(1, _DOCUMENTS // len(corpus.by_source())))
    for kept in corpus.choose(selection, (n * total // taken for n in range(taken))):
        first, end = token_range(corpus, kept)
        problem = kept.row.get("problem") or {}
        yield {
            **_card("kept", kept.shard.source, kept.row["id"], f"{kept.shard.file}:{kept.line}"),
            "facts": [
                f"{kept.split} {kept.index}",
                f"{end - first:,} tokens",
                *(f"{key}: {value}" for key in ("stage", "steps") if (value := problem.get(key)) is not None),
            ],
            **_text(kept.row["text"]),
        }


def _gone(source: str, reason: str, row: Row) -> Row:
    detail = row.get("detail") or {}
    stays = [f"stays: {_short(detail['kept'])}"] if "kept" in detail else []
    item = [_short(f"{detail['benchmark']} {detail['item']}")] if reason == CONTAMINATED else []
    limit = [f"{detail['measured']:.4g}, limit {detail['limit']:.4g}"] if "limit" in detail else []
    text = row["reason"] if reason == REJECTED else row.get("text", "")
    card = _card(reason, source, row.get("id", ""), f"{row['file']}:{row['line']}")
    return {**card, "facts": [*stays, *item, *limit], **_text(text)}


def _card(fate: str, source: str, identity: str, where: str) -> Row:
    return {"fate": fate, "source": source, "id": _short(identity), "where": _short(Path(where).name)}


def _text(text: str) -> Row:
    return {"text": text[:_MOST_CHARACTERS], "more": max(0, len(text) - _MOST_CHARACTERS)}


def _hit(row: Row) -> Row:
    hit = row["detail"]
    short = {key: _short(str(hit[key])) for key in ("benchmark", "item", "ngram")}
    where = _short(f"{Path(row['file']).name}:{row['line']}")
    return {**short, "share": hit["share"], "masked": hit["masked"], "id": _short(row["id"]), "where": where}


def _pair(corpus: CorpusFolder, row: Row) -> Row:
    """A dropped document beside the one that stays, from shortly before their first difference."""
    kept = original(corpus, row)
    texts = kept.row["text"], row["text"]
    same = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - _PAIR_CHARACTERS // 4)
    left, right = (_WORD.findall(text[start : start + _PAIR_CHARACTERS]) for text in texts)
    pieces: tuple[list[tuple[bool, str]], list[tuple[bool, str]]] = ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        pieces[0].append((kind != "equal", "".join(left[a:b])))
        pieces[1].append((kind != "equal", "".join(right[c:d])))
    sides = [
        {
            "id": _short(identity),
            "source": source,
            "before": start > 0,
            "after": start + _PAIR_CHARACTERS < len(text),
            "pieces": [piece for piece in found if piece[1]],
        }
        for identity, source, text, found in (
            (kept.row["id"], kept.shard.source, texts[0], pieces[0]),
            (row["id"], corpus.shard(row["shard"]).source, texts[1], pieces[1]),
        )
    ]
    return {"jaccard": likeness(corpus, texts[0], [texts[1]])[0], "sides": sides}


def _spread(items: list[Item], most: int) -> list[Item]:
    """At most `most` of `items`, evenly spaced."""
    taken = min(len(items), most)
    return [items[n * len(items) // taken] for n in range(taken)]


def _bounded(section: str, rows: Iterable[Row]) -> list[Row]:
    """The first `rows` that together stay below the bytes of a section when they are HTML."""
    found, left = [], MOST_BYTES[section]
    for row in rows:
        left -= 400 + len(html.escape(repr(row)).encode())  # 400: more than the markup of a row
        if left < 0:
            break
        found.append(row)
    return found


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHORT else text[:_MOST_SHORT] + " …"
