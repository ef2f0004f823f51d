"""A corpus build from raw sources to indexed datasets; the order of the stages stands in `build_corpus`.

A build that was killed goes on with the shards that were not finished and ends with the same bytes.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.decide import SPLITS, decide, pools_of
from megatron_mathcpt.data.decontaminate import Contamination, benchmark_files
from megatron_mathcpt.data.engines import load_encoder
from megatron_mathcpt.data.indexed_dataset import merge
from megatron_mathcpt.data.prepare import prepare_shard
from megatron_mathcpt.data.publish import join_lines, kept_bytes, kept_texts, publish_shard
from megatron_mathcpt.data.sources import list_shards
from megatron_mathcpt.data.tokenizer import (
    TokenizerInfo,
    install_tokenizer,
    load_tokenizer,
    tokenizer_file,
    train_tokenizer,
)
from megatron_mathcpt.data.work import Build
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.manifest import (
    Manifest,
    hash_file,
    is_complete,
    load_manifest,
    write_atomically,
    write_manifest,
)

KIND = "corpus"
_SAMPLE = 64  # documents on which a fast tokenizer engine must agree with the reference
_log = get_logger(__name__)


def build_corpus(config: Corpus, out: Path) -> Manifest:
    """Build the corpus of `config` in the folder `out` and return its manifest.

    Raises `DataError` naming file and line for wrong input, before anything is called complete.
    """
    build = Build(config, tuple(list_shards(config.sources)), out)
    inputs = _inputs(build)
    resolved = config.model_dump(mode="json")
    if is_complete(out, KIND, inputs=inputs, config=resolved):
        return load_manifest(out, KIND)
    build.claim(inputs)
    contamination = Contamination(config.decontaminate) if config.decontaminate else None
    prepared = [prepare_shard(build, shard, contamination) for shard in _logged(build, "prepare")]
    decide(build)
    _log.info("duplicates and validation split decided")
    info = _tokenizer(build)
    sample = list(islice(kept_texts(build, 1.0), _SAMPLE))
    encoder, _ = load_encoder(info.folder, config.tokenizer.special_literals, config.tokenizer.engine, sample)
    published = [publish_shard(build, shard, encoder, info) for shard in _logged(build, "tokenize")]
    _join(build)
    counts = _counts(build, prepared, published, info)
    report = {**counts, "benchmarks": _benchmarks(contamination, prepared)}
    write_atomically(out / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    manifest = write_manifest(out, KIND, inputs=inputs, counts=counts, config=resolved)
    shutil.rmtree(out / ".work")
    return manifest


def _inputs(build: Build) -> dict[str, str]:
    """SHA-256 of every file the build reads."""
    config = build.config
    files = [(f"{shard.source}/{shard.path.name}", shard.path) for shard in build.shards]
    if config.decontaminate:
        files += [(f"benchmark/{f.parent.name}/{f.name}", f) for f in benchmark_files(config.decontaminate)]
    inputs = {name: hash_file(path) for name, path in files}
    if config.tokenizer.path:
        inputs["tokenizer"] = hash_file(tokenizer_file(Path(config.tokenizer.path)))
    return inputs


def _logged(build: Build, verb: str) -> Iterable[Any]:
    for number, shard in enumerate(build.shards, 1):
        _log.info("%s %s (%d of %d)", verb, shard.path, number, len(build.shards))
        yield shard


def _tokenizer(build: Build) -> TokenizerInfo:
    """Train the tokenizer, or copy the given one, into the build."""
    settings, folder = build.config.tokenizer, build.out / "tokenizer"
    if settings.path:
        return install_tokenizer(Path(settings.path), folder)
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)[1]
    assert settings.vocab_size is not None
    _log.info("train a tokenizer of %d tokens", settings.vocab_size)
    share = min(1.0, settings.train_megabytes * 1e6 / max(1, kept_bytes(build)))
    return train_tokenizer(kept_texts(build, share), settings.vocab_size, folder)


def _join(build: Build) -> None:
    """Join the shards of each pool into its documents, dropped documents and datasets."""
    for pool in pools_of(build.config):
        shards = [shard for shard in build.shards if build.config.sources[shard.source].pool == pool]
        folders = [build.folder("published", shard) for shard in shards]
        early = [build.folder("prepared", shard) / "dropped.jsonl" for shard in shards]
        join_lines([f / "kept.jsonl" for f in folders], build.out / "documents" / f"{pool}.jsonl")
        join_lines(early + [f / "dropped.jsonl" for f in folders], build.out / "dropped" / f"{pool}.jsonl")
        for split in SPLITS.values():
            merge([f / split for f in folders], build.out / "datasets" / pool / split)


def _counts(
    build: Build, prepared: list[dict[str, Any]], published: list[dict[str, Any]], info: TokenizerInfo
) -> dict[str, Any]:
    pools: dict[str, Any] = {
        pool: {split: {"documents": 0, "tokens": 0} for split in SPLITS.values()}
        for pool in pools_of(build.config)
    }
    sources: dict[str, Any] = {}
    for shard, early, late in zip(build.shards, prepared, published, strict=True):
        row = sources.setdefault(shard.source, {"read": 0, "kept": 0, "dropped": Counter()})
        row["read"] += early["read"]
        row["dropped"].update(early["dropped"])
        row["dropped"].update(late["dropped"])
        for split in SPLITS.values():
            row["kept"] += late[split]["documents"]
            for unit, number in late[split].items():
                pools[build.config.sources[shard.source].pool][split][unit] += number
    for name, row in sources.items():
        assert row["read"] == row["kept"] + sum(row["dropped"].values()), f"documents of {name} lost"
        row["dropped"] = dict(sorted(row["dropped"].items()))
    tokenizer = {"vocab_size": info.vocab_size, "eos_id": info.eos_id, "sha256": info.sha256}
    return {"tokenizer": tokenizer, "pools": pools, "sources": sources}


def _benchmarks(contamination: Contamination | None, prepared: list[dict[str, Any]]) -> dict[str, Any]:
    """For every benchmark its items, and the documents that went because of it."""
    if contamination is None:
        return {}
    hits = [hit for counts in prepared for hit in counts["hits"]]
    return {
        name: {"items": items, "hits": [hit for hit in hits if hit["benchmark"] == name]}
        for name, items in contamination.benchmarks.items()
    }
