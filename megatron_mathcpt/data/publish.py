"""Last build stages: `make_tokenizer`, `split`, `publish` (tokenizes a shard's documents), `finish`.

`split` comes after the tokenizer, in whose tokens a budget may be, which is trained on all that is no copy.

`finish` is a build stage of its own, not the end of `publish`: shards are published in any order on any node,
and only when all are does one task join them in order of precedence, check that every record is accounted
for, and write the manifest, which makes the corpus complete.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import orjson

from megatron_mathcpt.config.corpus import Budget, Corpus, Tokenizer
from megatron_mathcpt.data import prepare, tokenizer
from megatron_mathcpt.data.decontaminate import benchmark_files, load_items
from megatron_mathcpt.data.duplicates import require_memory
from megatron_mathcpt.data.minhash import DUPLICATES, KEPT
from megatron_mathcpt.data.prepare import Array, ShardWork, load_array, read_counts
from megatron_mathcpt.data.tokenizer import Literals, Opened
from megatron_mathcpt.data.words import Hashes, batches, mix
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.corpus_folder import KIND, SPLITS, VALIDATION, make_places
from megatron_mathcpt.formats.files import atomic_writer, join_files, read_lines, write_atomically
from megatron_mathcpt.formats.indexed_dataset import Lengths, dataset_writer, merge, token_dtype
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.strict_json import decode_object, encode_json
from megatron_mathcpt.formats.tokenizer_folder import TokenizerCounts, load_tokenizer, write_tokenizer
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject

RESULTS = ("documents", "dropped", "rejected", "tokenizer", "datasets")
OVER_BUDGET = 4  # a decision, if it is not the number of a split (train is KEPT), or of a kind of copy
REASONS = {**DUPLICATES, OVER_BUDGET: "over_budget"}
_FEWEST_COUNTED, _STANDARD_ERROR = 1000, 0.001  # documents, and of the tokens of a budget
_ORIGINALS, _ENCODING = 1 << 16, 64 << 20  # read at once; bytes that encoding a batch takes
_CHOSEN = "encoder.json"  # in the work folder
_log = get_logger(__name__)


def make_tokenizer(works: Sequence[ShardWork], config: Corpus, inputs: dict[str, str], folder: Path) -> None:
    """Copy the given tokenizer into `folder`, or train one on the kept documents of all shards."""
    settings = config.tokenizer
    if settings.path:
        write_tokenizer(Path(settings.path), folder, settings.bos, settings.added_tokens)
        prepare.check_inputs(config, inputs)
    else:
        _train_tokenizer(works, config, folder)
    sample = tuple(islice(kept_texts(works), tokenizer.SAMPLE_DOCUMENTS))
    encoder, info = tokenizer.load_encoder(folder, settings.special_literals, settings.engine, sample)
    # For all shards: a process of each need not compare engines again.
    write_atomically(works[0].root / _CHOSEN, orjson.dumps([encoder.name, info.model_dump()]))
    token = load_tokenizer(folder)[0].id_to_token
    begin = "no token" if info.bos_id is None else token(info.bos_id)
    size = f"{info.vocab_size:,} tokens, encoded by {encoder.name}"
    _log.info("tokenizer: %s; documents begin with %s, end with %s", size, begin, token(info.eos_id))


def check_tokenizer(settings: Tokenizer) -> None:
    """Raise `DataError` now for an existing tokenizer that the build could not use."""
    if settings.path:
        with TemporaryDirectory() as folder:
            write_tokenizer(Path(settings.path), Path(folder), settings.bos, settings.added_tokens)
            tokenizer.load_encoder(Path(folder), settings.special_literals, "tokenizers")


def _train_tokenizer(works: Sequence[ShardWork], config: Corpus, folder: Path) -> None:
    settings = config.tokenizer
    assert settings.vocab_size is not None
    kept = ((work, load_array(work.decided / "verdicts.u1") == KEPT) for work in works)
    size = sum(int(load_array(work.prepared / "bytes.u8")[mask].sum()) for work, mask in kept)
    share = min(1.0, settings.train_megabytes * 1e6 / max(1, size))
    texts = kept_texts(works, share, config.seed)
    tokenizer.train_tokenizer(texts, settings.vocab_size, folder, settings.added_tokens)


def split_keys(whole: Hashes, seed: int) -> Array:
    """In [0, 1), from documents' words and the seed alone: adding or reordering sources moves none."""
    return (mix(whole ^ mix(np.array([seed % (1 << 64)], np.uint64))) >> np.uint64(11)) / float(1 << 53)


def kept_texts(works: Sequence[ShardWork], share: float = 1.0, seed: int = 0) -> Iterator[str]:
    """Texts of the documents that are no copies, or of the `share` of them with the smallest split keys."""
    for work in works:
        verdicts, whole = load_array(work.decided / "verdicts.u1"), load_array(work.prepared / "whole.u8")
        for first, lines in read_lines(work.prepared / "kept.jsonl"):
            part = slice(first - 1, first - 1 + len(lines))
            for number in np.flatnonzero((verdicts[part] == KEPT) & (split_keys(whole[part], seed) < share)):
                yield orjson.loads(lines[number])["text"]


def split(works: Sequence[ShardWork], config: Corpus, folder: Path) -> None:
    """Decide for every document that is no copy: over its source's budget, for validation, or for train."""
    counts = Counter[str]()
    for work, count in zip(works, prepare.count_documents(works), strict=True):
        counts[work.shard.source] += count if config.sources[work.shard.source].budget else 0
    if most := max(counts.values()):
        require_memory("split", most, 50 * most + _ENCODING)
    for pool in prepare.pools_of(config):
        inside = [work for work in works if config.sources[work.shard.source].pool == pool]
        decisions = [np.array(load_array(work.decided / "verdicts.u1")) for work in inside]
        names, low = [work.shard.source for work in inside], 0
        for name, group in groupby(names):
            chosen = slice(low, low := low + len([*group]))
            if budget := config.sources[name].budget:
                opened = _encoder(works, config.tokenizer, folder)
                _apply_budget(budget, inside[chosen], decisions[chosen], opened)
        least = []  # so that every pool can be validated on: the document with the smallest key
        for shard, (work, decided) in enumerate(zip(inside, decisions, strict=True)):
            keys = split_keys(load_array(work.prepared / "whole.u8"), config.seed)
            keys[decided != KEPT] = 1
            decided[keys < config.validation_fraction] = VALIDATION
            least += [(keys.min(), shard, keys.argmin())] if len(keys) else []
        if not (left := sum(int((decided <= VALIDATION).sum()) for decided in decisions)):
            raise DataError(f"pool '{pool}': the first document is over the budget of its source; raise it")
        key, shard, number = min(least)
        if config.validation_fraction and key >= config.validation_fraction and left > 1:
            decisions[shard][number] = VALIDATION
        for work, decided in zip(inside, decisions, strict=True):
            write_atomically(work.decided / "decisions.u1", decided.tobytes())


def _apply_budget(budget: Budget, works: list[ShardWork], decisions: list[Array], opened: Opened) -> None:
    """Mark what is over the budget of a source, whose shards are `works`."""
    (encoder, info), flat = opened, np.concatenate(decisions)
    kept = np.flatnonzero(flat == KEPT)
    pairs = [*zip(works, decisions, strict=True)]
    ranks, sizes = (
        np.concatenate([load_array(work.prepared / name)[decided == KEPT] for work, decided in pairs])
        for name in ("ranks.u8", "bytes.u8")
    )
    order = np.argsort(ranks, kind="stable")  # random, as the ranks are hashes
    costs: Array = sizes[order].astype(np.float64)
    order, (unit, asked) = kept[order], budget.model_dump(exclude_none=True).popitem()
    if unit == "tokens":

        def count_tokens(part: slice) -> Lengths:
            return encoder.encode([text for text, *_ in prepare.read_field(works, order[part], "text")])[1]

        costs = estimate_tokens(costs, asked, count_tokens, 1 if info.bos_id is None else 2)
    ends = np.cumsum(costs)
    flat[order[np.searchsorted(ends, asked, side="right") :]] = OVER_BUDGET
    for decided, part in zip(decisions, np.split(flat, np.cumsum([*map(len, decisions)])[:-1]), strict=True):
        decided[:] = part
    if not len(ends) or ends[-1] < asked:
        found = f"{ends[-1] if len(ends) else 0:,.0f} {unit} of its budget of {asked:,}"
        _log.warning("source '%s': has only %s; all of it is taken", works[0].shard.source, found)


def estimate_tokens(sizes: Array, asked: int, count: Callable[[slice], Lengths], enclosing: int) -> Array:
    """Tokens of documents in random order from their bytes: counted for the first, a random sample of all.

    A document has the tokens of its text, which `count` returns, and `enclosing` more. They are counted until
    `asked` is reached, or the sum up to there has a standard error of at most 0.1 %, by the ratio estimator:
    the deviations from the tokens per byte of the sample, for the rest through that ratio and on their own.
    """
    costs, check = np.empty(len(sizes)), _FEWEST_COUNTED
    for batch in batches(range(len(sizes)), cast(Sequence[int], sizes)):
        part, done = slice(batch[0], batch[-1] + 1), batch[-1] + 1
        costs[part] = count(part) + enclosing
        if done < min(check, len(sizes)):
            continue
        tokens, seen, check = costs[:done] - enclosing, costs[:done].sum(), done + done // 4
        rate = tokens.sum() / sizes[:done].sum()  # what encloses a text is no matter of bytes
        rest = min(asked - seen, sizes[done:].sum() * rate + enclosing * (len(sizes) - done))
        squares, more = ((tokens - rate * sizes[:done]) ** 2).sum(), max(0.0, rest / seen)
        if np.sqrt(squares * (more + more**2)) <= _STANDARD_ERROR * (seen + rest):
            costs[done:] = sizes[done:] * rate + enclosing
            break
    return costs


def publish(work: ShardWork, works: Sequence[ShardWork], settings: Tokenizer, folder: Path) -> None:
    """Write documents, places, duplicates and datasets of one of `works`, tokenized as in `folder`."""
    # Here, as shards are published in parallel.
    if not work.shard.stored and work.shard.hash() != read_counts(work.prepared)["sha256"]:
        raise prepare.changed(work)
    encoder, info = _encoder(works, settings, folder)
    shard, out = work.shard, work.published
    raw = [*dict.fromkeys(other.shard.name for other in works)].index(shard.name)
    # All have one entry per line of kept.jsonl.
    decisions, firsts = load_array(work.decided / "decisions.u1"), load_array(work.decided / "firsts.u4")
    numbers = load_array(work.prepared / "lines.u8")
    dtype = token_dtype(info.vocab_size)
    with ExitStack() as stack:
        writers = [stack.enter_context(dataset_writer(out / split, dtype)) for split in SPLITS.values()]
        names = ("kept.jsonl", "places", "dropped.jsonl")
        kept, places, dropped = (stack.enter_context(atomic_writer(out / name)) for name in names)
        originals = _originals(works, firsts[np.isin(decisions, [*DUPLICATES])])
        for first, lines in tokenizer.prefetch(read_lines(work.prepared / "kept.jsonl")):
            part = slice(first - 1, first - 1 + len(lines))
            decided, origin = np.array(decisions[part]), np.array(numbers[part])
            for number in np.flatnonzero(decided > VALIDATION):
                where = {"shard": shard.name, "file": shard.place, "line": int(origin[number])}
                row = {"reason": REASONS[decided[number]], **where, **decode_object(lines[number])}
                if decided[number] in DUPLICATES:
                    row["detail"] = next(originals)
                dropped.write(encode_json(row) + b"\n")
            for split, writer in zip(SPLITS, writers, strict=True):
                texts = [orjson.loads(lines[number])["text"] for number in np.flatnonzero(decided == split)]
                if texts:
                    writer.write(*tokenizer.enclose(*encoder.encode(texts), info))
            stay = np.flatnonzero(decided <= VALIDATION)
            written = [kept.write(lines[number] + b"\n") for number in stay]
            places.write(make_places(written, raw, origin[stay], decided[stay]))
    counts: JsonObject = {
        split: {"documents": writer.documents, "tokens": writer.tokens}
        for split, writer in zip(SPLITS.values(), writers, strict=True)
    }
    lost = {reason: int((decisions == value).sum()) for value, reason in REASONS.items()}
    counts["bytes"] = int(load_array(work.prepared / "bytes.u8")[decisions <= VALIDATION].sum())
    counts["dropped"] = {reason: count for reason, count in lost.items() if count}
    prepare.write_counts(out, counts)


def _encoder(works: Sequence[ShardWork], settings: Tokenizer, folder: Path) -> Opened:
    return _open_encoder((works[0].root / _CHOSEN).read_bytes(), folder, settings.special_literals)


@lru_cache(maxsize=1)  # once for all shards of a process
def _open_encoder(chosen: bytes, folder: Path, literals: Literals) -> Opened:
    engine, info = orjson.loads(chosen)
    return tokenizer.open_encoder(folder, literals, engine), TokenizerCounts.model_validate(info)


def _originals(works: Sequence[ShardWork], firsts: Array) -> Iterator[JsonObject]:
    for low in range(0, len(firsts), _ORIGINALS):
        for identity, shard, line in prepare.read_field(works, firsts[low : low + _ORIGINALS], "id"):
            yield {"kept": identity, "shard": shard, "line": line}


def finish(works: Sequence[ShardWork], config: Corpus, inputs: dict[str, str], out: Path) -> None:
    """Join the shards of each pool in `out`, write `report.json` and the manifest, remove the work folder."""
    for pool in prepare.pools_of(config):
        _join_pool(pool, [work for work in works if config.sources[work.shard.source].pool == pool], out)
    prepared = [read_counts(work.prepared) for work in works]
    counts = _counts(works, prepared, config, out)
    files = {w.shard.name: (w.shard.source, w.shard.place) for w in works}
    shards = [{"name": name, "source": source, "file": file} for name, (source, file) in files.items()]
    hits = [hit for found in prepared for hit in found["hits"]]
    items = [item for file in benchmark_files(config.decontaminate) for item in load_items(file)]
    benchmarks = {
        name: {"items": count, "hits": [hit for hit in hits if hit["benchmark"] == name]}
        for name, count in Counter(item.benchmark for item in items).items()
    }
    report = {**counts, "benchmarks": benchmarks, "shards": shards}
    write_atomically(out / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    for name in RESULTS:
        for leftover in (out / name).rglob(".*.tmp"):  # from writes that were killed
            leftover.unlink()
    # A shard is read again only if its times have changed: `publish` has compared its content.
    with ThreadPoolExecutor() as threads:  # a store takes its time
        stamps = [*threads.map(prepare.stamp, [work.shard for work in works])]
    for work, found, now in zip(works, prepared, stamps, strict=True):
        if now != work.seen and (work.shard.stored or work.shard.hash() != found["sha256"]):
            raise prepare.changed(work)
    prepare.check_inputs(config, inputs)
    # `inputs` has the other files: benchmarks and tokenizer.
    raw = {work.shard.input: found["sha256"] for work, found in zip(works, prepared, strict=True)}
    raw |= {f"{work.shard.input} in its store": work.seen for work in works if work.shard.stored}
    dump = config.model_dump(mode="json")
    write_manifest(out, KIND, inputs={**raw, **inputs}, counts=counts, config=dump)
    shutil.rmtree(works[0].root)


def _join_pool(pool: str, works: Sequence[ShardWork], out: Path) -> None:
    prepared, published = [work.prepared for work in works], [work.published for work in works]
    join_files((f / "kept.jsonl" for f in published), out / "documents" / f"{pool}.jsonl")
    join_files((f / "places" for f in published), out / "documents" / f"{pool}.places")
    join_files((f / "rejected.jsonl" for f in prepared), out / "rejected" / f"{pool}.jsonl")
    join_files((f / "dropped.jsonl" for f in prepared + published), out / "dropped" / f"{pool}.jsonl")
    for split in SPLITS.values():
        merge([f / split for f in published], out / "datasets" / pool / split)


def _counts(works: Sequence[ShardWork], prepared: list[JsonObject], config: Corpus, out: Path) -> JsonObject:
    """The manifest's counts, which `formats.corpus_folder.CorpusCounts` reads."""
    pools: dict[str, dict[str, Counter[str]]] = {}
    sources: dict[str, JsonObject] = {}
    for work, counts in zip(works, prepared, strict=True):
        published, source = read_counts(work.published), work.shard.source
        row = sources.setdefault(source, {"read": 0, "kept": 0, "rejected": 0, "dropped": Counter()})
        row["read"] += counts["read"]
        row["rejected"] += counts["rejected"]
        for found in (counts, published):
            row["dropped"].update(found["dropped"])
        if counts["answers"]:
            row["answers"] = dict(Counter(row.get("answers", {})) + Counter(counts["answers"]))
        pool = pools.setdefault(config.sources[source].pool, {split: Counter() for split in SPLITS.values()})
        for split in SPLITS.values():
            row["kept"] += published[split]["documents"]
            pool[split].update(published[split])
        if budget := config.sources[source].budget:
            unit, asked = budget.model_dump(exclude_none=True).popitem()
            tokens = sum(published[split]["tokens"] for split in SPLITS.values())
            met = row.setdefault("budget", {"unit": unit, "asked": asked, "found": 0})
            met["found"] += tokens if unit == "tokens" else published["bytes"]
    for name, row in sources.items():
        # Every record that was read is kept, rejected or dropped for a reason.
        accounted = row["kept"] + row["rejected"] + sum(row["dropped"].values())
        assert row["read"] == accounted, f"documents of {name} lost"
        row["dropped"] = dict(sorted(row["dropped"].items()))
    info = load_tokenizer(out / "tokenizer")[1]
    return {"tokenizer": info.model_dump(), "pools": pools, "sources": sources}
