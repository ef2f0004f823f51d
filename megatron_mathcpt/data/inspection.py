"""Inspect a finished corpus: documents, drops, lengths, the trace of a record; on a terminal or as a page.

Nothing loads a corpus whole: places and indexes are memory-mapped, JSON lines streamed or read by offset.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from itertools import chain, islice, product
from pathlib import Path
from unicodedata import normalize

import numpy as np
from rich.console import Console

from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats import corpus_folder
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept, Selection, corpus_counts
from megatron_mathcpt.formats.files import list_files, parse_row
from megatron_mathcpt.formats.indexed_dataset import read_document, read_lengths
from megatron_mathcpt.formats.lost_escapes import visible
from megatron_mathcpt.records import JsonObject, Problem, id_rank, problem_steps
from megatron_mathcpt.statistics import describe

_MOST_PROBLEMS = 20_000  # of a source, read to count their steps; evenly spaced if there are more
_MOST_STEPS = 15  # a bar each; the last includes all above
_PIPED_WIDTH = 140  # rich assumes 80 columns without a terminal
_BAR_WIDTH = 40
_SHOWN_CHARACTERS = 200  # of a document's text in a trace
_MOST_SOURCES, _MOST_CONFIG = 200, 20_000  # of a page; characters of the config
_MOST_REASONS, _SAMPLES, COMPARED = 30, 3, 4_000  # of a page; dropped records of each; characters of a pair
STRETCH, STRETCHES = 1 << 18, 128  # bytes of a pool's drops that are read at a place, and places
_MEASURED = 1_000_000  # characters of each text whose similarity is measured
_WORD = re.compile("[^\\W\\d_\u3041-\u30ff\u3400-\u9fff]+\\s*|\\d+\\s*|.\\s*", re.DOTALL)


def find_documents(
    corpus: CorpusFolder, selections: Sequence[Selection], number: int | None, record: str | None, limit: int
) -> Iterator[Kept]:
    """The first documents of `selections`, or the one with this number, or those with this id."""
    if number is not None:
        if record is not None:
            raise ConfigError("give one of number and id")
        if len(selections) > 1:  # each counts from 0
            pools = ", ".join(selection.pool for selection in selections)
            raise ConfigError(f"number {number}: name a pool or source too; there is {pools}")
        return corpus.choose(selections[0], [number])
    if record is None:
        first = (corpus.choose(one, range(min(limit, corpus.count(one)))) for one in selections)
        return islice(chain.from_iterable(first), limit)
    kept = ((one, found) for one in selections for found in _kept(corpus, one.pool, record))
    named = [k for s, k in kept if s.source in (None, k.shard.source) and s.split in (None, k.split)]
    if not named:
        names = "; ".join(map(str, selections))
        raise ConfigError(f"id '{record}': no kept document of {names}; 'trace' shows what became of it")
    return islice(named, limit)


def trace(corpus: CorpusFolder, record: str) -> list[Kept | JsonObject]:
    """All records with this id, or from `FILE:LINE` of a raw file; for one not kept its drop or reject."""
    file, _, line = record.rpartition(":")
    shards = [shard for shard in corpus.shards if file in (shard.file, Path(shard.file).name)]
    found: list[Kept | JsonObject] = []
    if shards and line.isdecimal():
        # Several sources may read one file, each with its own decision.
        for shard in shards:
            kept = corpus.at(shard, int(line))
            lost = (row for kind in ("dropped", "rejected") for row in _scan_lost(corpus, kind, shard.name))
            place = (shard.name, int(line))
            found += [kept] if kept else [row for row in lost if (row["shard"], row["line"]) == place]
    else:
        found += [kept for pool in corpus.pools for kept in _kept(corpus, pool, record)]
        found += [row for row in _scan_lost(corpus, "dropped", record) if row["id"] == record]
    if not found:
        names = ", ".join(dict.fromkeys(Path(shard.file).name for shard in corpus.shards[:8]))
        remedy = "give the id of a record in its source, or FILE:LINE of a non-blank line"
        where = f"in one of the {len(corpus.shards)} files ({names})"
        raise ConfigError(f"record '{record}': neither kept nor dropped in {corpus.root}; {remedy} {where}")
    return found


def _kept(corpus: CorpusFolder, pool: str, record: str) -> Iterator[Kept]:
    rows = _scan(corpus.root / "documents" / f"{pool}.jsonl", record)
    return corpus.documents(pool, (number for number, row in rows if row["id"] == record))


def _scan_lost(corpus: CorpusFolder, kind: str, text: str) -> Iterator[JsonObject]:
    """Records in the folder `kind`, "dropped" or "rejected", that contain the string `text` (empty: all)."""
    for pool in corpus.pools:
        for _, row in _scan(corpus.root / kind / f"{pool}.jsonl", text):
            yield row | {"status": kind, "pool": pool}


def _scan(path: Path, text: str) -> Iterator[tuple[int, JsonObject]]:
    """Number, from 0, and content of each JSON line that contains the string `text`."""
    # Parsing is the cost: the bytes of the string are searched first.
    needle = json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass") if text else b""
    if not path.exists():  # an adopted corpus has tokens only
        return
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if needle in line:
                yield number, parse_row(line, path, number + 1)


def drop_counts(corpus: CorpusFolder, source: str | None = None) -> dict[str, Counter[str]]:
    """Records that were not kept, by source and reason; unreadable ones count as `rejected`."""
    return {
        name: +Counter({**row.dropped, "rejected": row.rejected})
        for name, row in corpus_counts(corpus.manifest).sources.items()
        if source in (None, name)
    }


def token_lengths(corpus: CorpusFolder, selection: Selection) -> Iterator[int]:
    """Tokens of each selected document, including the end-of-text token."""
    names = corpus_folder.SPLITS.items()
    rest = {number: read_lengths(corpus.dataset(selection.pool, split))[0] for number, split in names}
    for _, block, chosen in corpus.blocks(selection):
        found = np.empty(len(block), np.int32)
        for split in corpus_folder.SPLITS:
            inside = block["split"] == split
            found[inside], rest[split] = np.split(rest[split], [inside.sum()])
        yield from found[chosen].tolist()


def lengths(corpus: CorpusFolder, selection: Selection) -> Iterator[JsonObject]:
    """Distributions of tokens per document of one source, and of steps per problem if known."""
    tokens = token_lengths(corpus, selection)  # in bars from power to power of two
    found = describe(tokens, int.bit_length, lambda n: f"{2**n // 2:,}–{2**n - 1:,}" if n > 1 else str(n))
    source = corpus.manifest.config["sources"][selection.source]
    if total := found["total"]:
        unit, title = "tokens per document", "tokens, with the end-of-text token"
        yield {"source": selection.source, "unit": unit, "title": title, **found}
    if source["kind"] == "problem":
        read = min(total, _MOST_PROBLEMS)
        rows = (one.row for one in corpus.choose(selection, (n * total // read for n in range(read))))
        problems = (Problem(id=row["id"], source=row["source"], **row["problem"]) for row in rows)
        label = [*map(str, range(_MOST_STEPS)), f"{_MOST_STEPS}+"].__getitem__
        found = describe(map(problem_steps, problems), lambda steps: min(steps, _MOST_STEPS), label)
        title = f"steps of {read:,} problems: their own number, or counted"
        yield {"source": selection.source, "unit": "steps per problem", "title": title, **found}


class Screen:
    """Show a corpus on the terminal, at most `most` characters of a document (0: all)."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        # Without rich's markup: brackets in a document are text.
        self._console = Console(markup=False, emoji=False, highlight=False, width=width)
        self._corpus, self._most = corpus_folder.open_corpus(folder), most

    def documents(
        self, names: Sequence[str | None], number: int | None, record: str | None, limit: int
    ) -> None:
        """Show documents of a pool, source, split (None: all), each with its place."""
        for one in find_documents(self._corpus, self._corpus.selections(*names), number, record, limit):
            tokens = len(read_document(self._corpus.dataset(one.pool, one.split), one.index)[1])
            where = f"{one.shard.file}:{one.line}  {one.split} {one.index}, {tokens:,} tokens"
            self._head(f"{one.pool} {one.number}")
            self._say(f"{one.row['id']}  {where}", dim=True)
            self._text(one.row["text"])

    def drops(
        self, reason: str | None, source: str | None, limit: int, print_table: Callable[..., None]
    ) -> None:
        """Count dropped records by source and reason, then show `limit` of each reason, or of `reason`."""
        corpus = self._corpus
        corpus.selections(None, source)  # refuses an unknown source
        counts, known = drop_counts(corpus, source), corpus_counts(corpus.manifest).sources
        reasons = sorted({name for row in counts.values() for name in row})
        if reason not in (None, *reasons):
            there = ", ".join(reasons) or "none"
            raise ConfigError(f"reason '{reason}': nothing was dropped for it; there is {there}")
        sizes = {name: (known[name].read, known[name].kept) for name in counts}
        cells = ((name, *sizes[name], *map(dropped.__getitem__, reasons)) for name, dropped in counts.items())
        print_table(("source", "read", "kept", *reasons), cells, "Records that were not kept")
        shards = {shard.name for shard in corpus.shards if source in (None, shard.source)}
        for name in reasons if reason is None else [reason]:
            self._head(name)
            kind, text = ("rejected", "") if name == "rejected" else ("dropped", name)
            rows = (row for row in _scan_lost(corpus, kind, text) if row["shard"] in shards)
            for row in islice((row for row in rows if text in ("", row["reason"])), limit):
                self._say(f"{row['file']}:{row['line']}  {row.get('id', '')}", dim=True)
                why = "; ".join(f"{key}: {value}" for key, value in _detail(corpus, row).items())
                if said := why or row["reason"] * (not text):
                    self._say(said)
                if "text" in row:
                    self._text(row["text"])

    def lengths(self, pool: str | None, source: str | None) -> None:
        selections = self._corpus.by_source(pool, source)
        for row in chain.from_iterable(lengths(self._corpus, one) for one in selections):
            self._head(f"{row['source']}: {row['title']}")
            if bars := row["bars"]:
                quantiles = ", ".join(f"{name} {value:,}" for name, value in row["quantiles"].items())
                self._say(f"{row['total']:,} in all, mean {row['mean']:,.1f}; {quantiles}")
                widest, tallest = max(len(label) for label, _ in bars), max(count for _, count in bars)
                for label, count in bars:
                    halves = -(-count * _BAR_WIDTH * 2 // tallest)  # at least one where there is a document
                    drawn = "█" * (halves // 2) + "▌" * (halves % 2)
                    self._say(f"{label:>{widest}}  {drawn:<{_BAR_WIDTH}}  {count:,}")

    def trace(self, record: str) -> None:
        corpus = self._corpus
        for one in trace(corpus, record):
            if isinstance(one, Kept):
                self._head(f"{one.pool} {one.number}")
                dataset = corpus.dataset(one.pool, one.split)
                first, ids = read_document(dataset, one.index)
                way = {"id": one.row["id"], "source": one.shard.source, "raw": f"{one.shard.file}:{one.line}"}
                place = f"{corpus.root / 'documents' / one.pool}.jsonl, number {one.number}"
                if isinstance(corpus, corpus_folder.AdoptedCorpus):
                    place = f"{one.row['text'][:_SHOWN_CHARACTERS]!r}"
                way |= {"status": "kept", "document": place, "dataset": f"{dataset}, document {one.index}"}
                way["tokens"] = f"{first} up to, not including, {first + len(ids)}"
            else:
                self._head(one["pool"])
                way = {"id": one["id"]} if "id" in one else {}
                way |= {"source": corpus.shard(one["shard"]).source, "raw": f"{one['file']}:{one['line']}"}
                way |= {"status": f"{one['status']}: {one['reason']}", **_detail(corpus, one)}
            for name, value in way.items():
                self._say(f"{name:<11}{value}")

    def _say(self, text: str, dim: bool = False) -> None:
        self._console.print(visible(text), style="dim" if dim else None, soft_wrap=True)

    def _text(self, text: str) -> None:
        rest = len(text) - (self._most or len(text))
        self._say(f"{text[:-rest]} … ({rest:,} more characters)" if rest > 0 else text)

    def _head(self, text: str) -> None:
        self._console.rule(visible(text), align="left")


def _detail(corpus: CorpusFolder, lost: JsonObject) -> JsonObject:
    """Why a record was dropped: the document kept in its place, the benchmark hit, or the limit."""
    detail: JsonObject = lost.get("detail") or {}
    if "kept" not in detail:
        return detail
    return {"copy of": f"{detail['kept']}  {corpus.shard(detail['shard']).file}:{detail['line']}"}


def dropped_samples(corpus: CorpusFolder) -> Iterator[JsonObject]:
    """A few records of each reason, chosen by a hash of their ids; the most frequent reasons first."""
    chosen: dict[str, dict[int, JsonObject]] = {}
    for kind, pool in product(("dropped", "rejected"), corpus.pools):
        for row in _read_evenly(corpus.root / kind / f"{pool}.jsonl"):
            found = chosen.setdefault(row["reason"] if kind == "dropped" else kind, {})
            found[id_rank(f"{row.get('id')} {row['shard']}:{row['line']}")] = row
            if len(found) > _SAMPLES:
                del found[max(found)]
    for reason, count in sum(drop_counts(corpus).values(), Counter[str]()).most_common(_MOST_REASONS):
        rows = sorted(chosen.get(reason, {}).items())
        yield {"reason": reason, "count": count, "records": [_explain(corpus, row) for _, row in rows]}


def _read_evenly(path: Path) -> Iterator[JsonObject]:
    """The rows of a file; of a big one those that begin in stretches at even distances."""
    size = path.stat().st_size if path.exists() else 0
    for begin in range(0, size, max(STRETCH, size // STRETCHES)):
        with path.open("rb") as file:
            file.seek(max(0, begin - 1))
            place = begin - 1 + len(file.readline()) if begin else 0  # after what the stretch before has
            while place < begin + STRETCH and (line := file.readline()):
                place += len(line)
                yield parse_row(line, f"{path}: after byte", begin)


def _explain(corpus: CorpusFolder, row: JsonObject) -> JsonObject:
    """A dropped record with its `text` in parts, and `other`, of the benchmark item or of what was kept."""
    from megatron_mathcpt.data.decontaminate import load_items  # loads a compiler, which no other view needs

    detail, text, config = row.get("detail") or {}, row.get("text", ""), corpus.manifest.config
    found = row | {"detail": detail, "text": [(False, text)], "other": [], "place": "", "similarity": None}
    if "ngram" in detail:
        found["text"] = _mark(text, detail["ngram"])
        for path in config["decontaminate"]["benchmarks"]:
            with suppress(DataError):  # it is no longer there
                for item in chain.from_iterable(map(load_items, list_files(path, "benchmark"))):
                    if item[:2] == (detail["benchmark"], detail["item"]):
                        found |= {"place": item.where, "other": _mark(item.question, detail["ngram"])}
    elif "kept" in detail:
        twin = corpus.shard(detail["shard"])
        found["place"] = f"{twin.file}:{detail['line']}"
        if row["reason"] == "near_duplicate" and (kept := corpus.at(twin, detail["line"])):
            found |= _compare(text, kept.row["text"], config["deduplicate"]["shingle_words"])
    return found


def _cut(text: str) -> tuple[list[str], list[str]]:
    """Words with the space after them, and folded as in data/words.py."""
    words = _WORD.findall(normalize("NFC", text))
    return words, [normalize("NFKC", word).lower().replace("\u2019", "'").rstrip() for word in words]


def _mark(text: str, ngram: str) -> list[tuple[bool, str]]:
    """Parts of `text`, and whether each is marked: the longest run of the n-gram's words is."""
    words, folded = _cut(text)
    at, _, size = SequenceMatcher(None, folded, _cut(ngram)[1], autojunk=False).find_longest_match()
    parts = (False, words[:at]), (True, words[at : at + size]), (False, words[at + size :])
    return [(marked, "".join(part)) for marked, part in parts]


def _compare(text: str, other: str, shingle: int) -> JsonObject:
    """Both texts with the words that differ marked, and the Jaccard similarity of their shingles."""
    cut = (_cut(whole[:_MEASURED])[1] for whole in (text, other))
    one, two = ({*zip(*(words[n:] for n in range(shingle)), strict=False)} for words in cut)
    (words, folded), (others, likewise) = _cut(text[:COMPARED]), _cut(other[:COMPARED])
    codes = SequenceMatcher(None, folded, likewise).get_opcodes()
    return {
        "similarity": len(one & two) / len(one | two) if one | two else None,
        "text": [(kind != "equal", "".join(words[low:high])) for kind, low, high, *_ in codes],
        "other": [(kind != "equal", "".join(others[low:high])) for kind, *_, low, high in codes],
    }


def page_content(corpus: CorpusFolder) -> JsonObject:
    """Counts and distributions for the page's template, bounded in size whatever the corpus."""
    counts, dropped = corpus_counts(corpus.manifest), drop_counts(corpus)
    found = sorted(corpus.by_source(), key=lambda one: -counts.sources[str(one.source)].read)[:_MOST_SOURCES]
    return {
        "name": corpus.manifest.config["name"],
        "counts": counts,
        "sources": {str(one.source): (one.pool, dropped[str(one.source)]) for one in found},
        "dropped": [*dropped_samples(corpus)],
        "lengths": [row for one in found for row in lengths(corpus, one) if row["bars"]],
        "manifest": corpus.manifest,
        "config": json.dumps(corpus.manifest.config, indent=1, ensure_ascii=False)[:_MOST_CONFIG],
    }
