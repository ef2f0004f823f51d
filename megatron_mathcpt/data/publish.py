"""Last build stages: `make_tokenizer`; `publish`, which tokenizes a shard's kept documents; `finish`.

`finish` is a build stage of its own, not the end of `publish`: shards are published in any order on any node,
and only when all are does one task join them in order of precedence, check that every record is accounted
for, and write the manifest, which makes the corpus complete.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import orjson

from megatron_mathcpt.config.corpus import Corpus, Tokenizer
from megatron_mathcpt.data import tokenizer
from megatron_mathcpt.data.decontaminate import benchmark_files, load_items
from megatron_mathcpt.data.minhash import DUPLICATES
from megatron_mathcpt.data.prepare import (
    Array,
    ShardWork,
    changed,
    check_inputs,
    load_array,
    pools_of,
    read_counts,
    stamp,
    write_counts,
)
from megatron_mathcpt.data.tokenizer import Encoder, EngineName, Literals
from megatron_mathcpt.formats.corpus_folder import KIND, SPLITS, VALIDATION, TokenizerCounts, make_places
from megatron_mathcpt.formats.files import atomic_writer, hash_file, join_files, read_lines, write_atomically
from megatron_mathcpt.formats.indexed_dataset import dataset_writer, merge, token_dtype
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.strict_json import decode_object, encode_json
from megatron_mathcpt.records import JsonObject

RESULTS = ("documents", "dropped", "rejected", "tokenizer", "datasets")


def make_tokenizer(works: Sequence[ShardWork], config: Corpus, inputs: dict[str, str], folder: Path) -> None:
    """Copy the given tokenizer into `folder`, or train one on the kept documents of all shards."""
    settings = config.tokenizer
    if settings.path:
        tokenizer.copy_tokenizer(Path(settings.path), folder)
        check_inputs(config, inputs)
        return
    assert settings.vocab_size is not None
    kept = ((work, load_array(work.decided / "decisions.npy") <= VALIDATION) for work in works)
    size = sum(int(load_array(work.prepared / "bytes.npy")[mask].sum()) for work, mask in kept)
    share = min(1.0, settings.train_megabytes * 1e6 / max(1, size))
    texts = kept_texts(works, share)
    tokenizer.train_tokenizer(texts, settings.vocab_size, folder, settings.added_tokens)


def kept_texts(works: Sequence[ShardWork], share: float = 1.0) -> Iterator[str]:
    """Texts of the kept documents, or of the `share` of them with the smallest split keys."""
    for work in works:
        decisions, keys = (load_array(work.decided / f"{n}.npy") for n in ("decisions", "keys"))
        for first, lines in read_lines(work.prepared / "kept.jsonl"):
            part = slice(first - 1, first - 1 + len(lines))
            for number in np.flatnonzero((decisions[part] <= VALIDATION) & (keys[part] < share)):
                yield orjson.loads(lines[number])["text"]


def publish(work: ShardWork, works: Sequence[ShardWork], settings: Tokenizer, folder: Path) -> None:
    """Write documents, places, duplicates and datasets of one of `works`, tokenized as in `folder`."""
    # Here, as shards are published in parallel.
    if not work.shard.stored and work.shard.hash() != read_counts(work.prepared)["sha256"]:
        raise changed(work)
    # The sample is the same for every shard, so that all are tokenized by the same engine.
    sample = tuple(islice(kept_texts(works), tokenizer.SAMPLE_DOCUMENTS))
    sha256 = hash_file(folder / "tokenizer.json")
    encoder, info = _load_encoder(sha256, folder, settings.special_literals, settings.engine, sample)
    shard, out = work.shard, work.published
    raw = [*dict.fromkeys(other.shard.name for other in works)].index(shard.name)
    # Both have one entry per line of kept.jsonl.
    decisions = load_array(work.decided / "decisions.npy")
    numbers = load_array(work.prepared / "lines.npy")
    dtype = token_dtype(info.vocab_size)
    with ExitStack() as stack:
        writers = [stack.enter_context(dataset_writer(out / split, dtype)) for split in SPLITS.values()]
        names = ("kept.jsonl", "places", "dropped.jsonl")
        kept, places, dropped = (stack.enter_context(atomic_writer(out / name)) for name in names)
        originals = iter(_originals(work, works, decisions))
        for first, lines in tokenizer.prefetch(read_lines(work.prepared / "kept.jsonl")):
            part = slice(first - 1, first - 1 + len(lines))
            decided, origin = np.array(decisions[part]), np.array(numbers[part])
            for number in np.flatnonzero(decided > VALIDATION):
                where = {"shard": shard.name, "file": shard.place, "line": int(origin[number])}
                row = {"reason": DUPLICATES[decided[number]], **where, **decode_object(lines[number])}
                dropped.write(encode_json({**row, "detail": next(originals)}) + b"\n")
            for split, writer in zip(SPLITS, writers, strict=True):
                texts = [orjson.loads(lines[number])["text"] for number in np.flatnonzero(decided == split)]
                if texts:
                    writer.write(*tokenizer.append_eos(*encoder.encode(texts), info.eos_id))
            stay = np.flatnonzero(decided <= VALIDATION)
            written = [kept.write(lines[number] + b"\n") for number in stay]
            places.write(make_places(written, raw, origin[stay], decided[stay]))
    counts: JsonObject = {
        split: {"documents": writer.documents, "tokens": writer.tokens}
        for split, writer in zip(SPLITS.values(), writers, strict=True)
    }
    copies = {reason: int((decisions == value).sum()) for value, reason in DUPLICATES.items()}
    write_counts(out, counts | {"dropped": {reason: count for reason, count in copies.items() if count}})


@lru_cache(maxsize=1)  # once for all shards of a process; `sha256` is of the tokenizer, part of the key
def _load_encoder(
    sha256: str, folder: Path, literals: Literals, engine: EngineName, sample: tuple[str, ...]
) -> tuple[Encoder, TokenizerCounts]:
    return tokenizer.load_encoder(folder, literals, engine, sample)


def _originals(work: ShardWork, works: Sequence[ShardWork], decisions: Array) -> list[JsonObject]:
    """For each duplicate of a shard in order, id and place of the document that is kept."""
    wanted = np.array(load_array(work.decided / "first.npy")[decisions > VALIDATION])
    result: list[JsonObject] = [{}] * len(wanted)
    start = 0
    for other in works if len(wanted) else ():
        lines = (other.prepared / "ids.jsonl").read_bytes().split(b"\n")[:-1]
        numbers = load_array(other.prepared / "lines.npy")
        for place in np.flatnonzero((wanted >= start) & (wanted < start + len(lines))):
            number = wanted[place] - start
            where = {"shard": other.shard.name, "line": int(numbers[number])}
            result[place] = {"kept": orjson.loads(lines[number]), **where}
        start += len(lines)
    return result


def finish(works: Sequence[ShardWork], config: Corpus, inputs: dict[str, str], out: Path) -> None:
    """Join the shards of each pool in `out`, write `report.json` and the manifest, remove the work folder."""
    for pool in pools_of(config):
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
        stamps = [*threads.map(stamp, [work.shard for work in works])]
    for work, found, now in zip(works, prepared, stamps, strict=True):
        if now != work.seen and (work.shard.stored or work.shard.hash() != found["sha256"]):
            raise changed(work)
    check_inputs(config, inputs)
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
        pool = pools.setdefault(config.sources[source].pool, {split: Counter() for split in SPLITS.values()})
        for split in SPLITS.values():
            row["kept"] += published[split]["documents"]
            pool[split].update(published[split])
    for name, row in sources.items():
        # Every record that was read is kept, rejected or dropped for a reason.
        accounted = row["kept"] + row["rejected"] + sum(row["dropped"].values())
        assert row["read"] == accounted, f"documents of {name} lost"
        row["dropped"] = dict(sorted(row["dropped"].items()))
    info = tokenizer.load_tokenizer(out / "tokenizer")[1]
    return {"tokenizer": info.model_dump(), "pools": pools, "sources": sources}
