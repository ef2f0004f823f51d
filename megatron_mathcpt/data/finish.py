"""Last stage: join the shards of each pool, account for every document, write the report and the manifest."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.data.decide import pools_of
from megatron_mathcpt.data.decontaminate import load_items
from megatron_mathcpt.data.tokenizer import load_tokenizer
from megatron_mathcpt.data.work import RESULTS, WORK, Build, small_inputs
from megatron_mathcpt.formats.corpus_folder import KIND, SPLITS
from megatron_mathcpt.formats.files import write_atomically, write_whole
from megatron_mathcpt.formats.indexed_dataset import merge
from megatron_mathcpt.formats.manifest import write_manifest


def finish(build: Build, task: int = 0) -> None:
    """Complete the build: joined files, `report.json`, then the manifest; the work folder goes."""
    _join(build)
    counts = _counts(build)
    shards = [{"name": s.name, "source": s.source, "file": str(s.path)} for s in build.shards]
    report = {**counts, "benchmarks": _benchmarks(build), "shards": shards}
    write_atomically(build.out / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    for name in RESULTS:
        for leftover in (build.out / name).rglob(".*.tmp"):  # of a build that was killed
            leftover.unlink()
    raw = {shard.label: build.counts("prepared", shard)["sha256"] for shard in build.shards}
    config = build.config.model_dump(mode="json")
    inputs = {**raw, **small_inputs(build.config)}
    write_manifest(build.out, KIND, inputs=inputs, counts=counts, config=config)
    shutil.rmtree(build.out / WORK)


def _join(build: Build) -> None:
    """Join the shards of each pool into its documents, their places, dropped documents and datasets."""
    for pool in pools_of(build.config):
        shards = [shard for shard in build.shards if build.config.sources[shard.source].pool == pool]
        folders = [build.folder("published", shard) for shard in shards]
        early = [build.folder("prepared", shard) / "dropped.jsonl" for shard in shards]
        _join_files([f / "kept.jsonl" for f in folders], build.out / "documents" / f"{pool}.jsonl")
        _join_files([f / "places" for f in folders], build.out / "documents" / f"{pool}.places")
        rejected = [build.folder("prepared", shard) / "rejected.jsonl" for shard in shards]
        _join_files(rejected, build.out / "rejected" / f"{pool}.jsonl")
        _join_files(early + [f / "dropped.jsonl" for f in folders], build.out / "dropped" / f"{pool}.jsonl")
        for split in SPLITS.values():
            merge([f / split for f in folders], build.out / "datasets" / pool / split)


def _join_files(parts: list[Path], path: Path) -> None:
    with write_whole(path) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 16 << 20)


def _counts(build: Build) -> dict[str, Any]:
    pools: dict[str, Any] = {
        pool: {split: {"documents": 0, "tokens": 0} for split in SPLITS.values()}
        for pool in pools_of(build.config)
    }
    sources: dict[str, Any] = {}
    for shard in build.shards:
        early, late = build.counts("prepared", shard), build.counts("published", shard)
        row = sources.setdefault(shard.source, {"read": 0, "kept": 0, "rejected": 0, "dropped": Counter()})
        row["read"] += early["read"]
        row["rejected"] += early["rejected"]
        row["dropped"].update(early["dropped"])
        row["dropped"].update(late["dropped"])
        for split in SPLITS.values():
            row["kept"] += late[split]["documents"]
            for unit, number in late[split].items():
                pools[build.config.sources[shard.source].pool][split][unit] += number
    for name, row in sources.items():
        accounted = row["kept"] + row["rejected"] + sum(row["dropped"].values())
        assert row["read"] == accounted, f"documents of {name} lost"
        row["dropped"] = dict(sorted(row["dropped"].items()))
    info = load_tokenizer(build.out / "tokenizer")[1]
    tokenizer = {"vocab_size": info.vocab_size, "eos_id": info.eos_id, "sha256": info.sha256}
    return {"tokenizer": tokenizer, "pools": pools, "sources": sources}


def _benchmarks(build: Build) -> dict[str, Any]:
    """For every benchmark its items, and the documents that went because of it."""
    if build.config.decontaminate is None:
        return {}
    items = [item for path in build.config.decontaminate.benchmarks for item in load_items(path)]
    hits = [hit for shard in build.shards for hit in build.counts("prepared", shard)["hits"]]
    return {
        name: {"items": number, "hits": [hit for hit in hits if hit["benchmark"] == name]}
        for name, number in Counter(item.benchmark for item in items).items()
    }
