"""A complete corpus folder of a few thousand made-up tokens, as training reads it."""

import hashlib
import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_mathcpt.data.tokenizer import enclose, load_encoder
from megatron_mathcpt.formats.corpus_folder import SPLITS, TRAIN, VALIDATION, make_places
from megatron_mathcpt.formats.indexed_dataset import dataset_writer, token_dtype
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer

VOCAB_SIZE, EOS_ID = 500, 0
TOKENIZER = b"{}"  # tokenizer.json of corpora and weights whose tokens are made up
POOLS = {"general": 60, "math_corpus": 30, "problem_solving": 30}  # training documents


def write_indexed_dataset(prefix: Path, documents: list[list[int]]) -> dict[str, int]:
    """Write an indexed dataset and return its counts."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with dataset_writer(prefix, token_dtype(VOCAB_SIZE)) as writer:
        writer.write(np.concatenate(documents), np.array(list(map(len, documents))))
    return {"documents": writer.documents, "tokens": writer.tokens}


def complete_corpus(folder: Path, vocab_size: int, pools: dict[str, Any], **config: Any) -> Path:
    """Write the manifest of a folder whose datasets, of these counts, are written."""
    file = folder / "tokenizer" / "tokenizer.json"
    digest = hashlib.sha256(file.read_bytes() if file.is_file() else TOKENIZER).hexdigest()
    tokenizer = {"vocab_size": vocab_size, "eos_id": EOS_ID, "sha256": digest}
    if (folder / "tokenizer" / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(folder / "tokenizer")[1].model_dump()
    counts = {"tokenizer": tokenizer, "pools": pools, "sources": {}}
    write_manifest(folder, "corpus", inputs={}, counts=counts, config=config)
    return folder


def write_pool(
    folder: Path, pool: str, rows: Sequence[dict[str, Any]], held_out: Container[int] = ()
) -> dict[str, Any]:
    """Write rows with a `text`, tokenized as in `folder / "tokenizer"`, as a pool; returns its counts.

    Those whose numbers are `held_out` are for validation.
    """
    encoder, info = load_encoder(folder / "tokenizer", "text")
    splits = np.array([n in held_out for n in range(len(rows))], np.uint8)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    (folder / "documents").mkdir(exist_ok=True)
    (folder / "documents" / f"{pool}.jsonl").write_bytes(b"".join(lines))
    places = make_places(list(map(len, lines)), 0, np.arange(1, len(rows) + 1, dtype=np.uint64), splits)
    (folder / "documents" / f"{pool}.places").write_bytes(places)
    counts = {}
    for number, split in SPLITS.items():
        texts = [row["text"] for row, place in zip(rows, splits.tolist(), strict=True) if place == number]
        with dataset_writer(folder / "datasets" / pool / split, token_dtype(info.vocab_size)) as writer:
            if texts:
                writer.write(*enclose(*encoder.encode(texts), info))
        counts[split] = {"documents": writer.documents, "tokens": writer.tokens}
    return counts


def make_documents(count: int, seed: int) -> list[list[int]]:
    """Arithmetic progressions over the vocabulary: learnable, of 10 to 120 tokens, ended by EOS."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        start, stride, length = random.integers(1, VOCAB_SIZE), random.integers(1, 4), random.integers(9, 120)
        tokens = (start + stride * np.arange(length)) % (VOCAB_SIZE - 1) + 1
        documents.append([*tokens.tolist(), EOS_ID])
    return documents


def write_tokenized_corpus(folder: Path, names: Sequence[str] = tuple(POOLS)) -> Path:
    """Write a corpus of these pools, whose texts are all alike."""
    pools, shards = {}, []
    (folder / "documents").mkdir(parents=True)
    for seed, (pool, size) in enumerate(POOLS.items()):
        if pool not in names:
            continue
        splits = {"train": make_documents(size, seed), "validation": make_documents(5, 100 + seed)}
        place = folder / "datasets" / pool
        pools[pool] = {name: write_indexed_dataset(place / name, split) for name, split in splits.items()}
        lines = [b'{"id": "%s %d", "text": "a text"}\n' % (pool.encode(), n) for n in range(size + 5)]
        (folder / "documents" / f"{pool}.jsonl").write_bytes(b"".join(lines))
        numbers = np.repeat([TRAIN, VALIDATION], [size, 5]).astype(np.uint8)
        places = make_places(
            list(map(len, lines)), len(shards), np.arange(1, size + 6, dtype=np.uint64), numbers
        )
        (folder / "documents" / f"{pool}.places").write_bytes(places)
        shards.append({"name": f"{pool}-00000", "source": pool, "file": f"{pool}.jsonl"})
    (folder / "report.json").write_text(json.dumps({"shards": shards}))
    return complete_corpus(folder, VOCAB_SIZE, pools, sources={pool: {"pool": pool} for pool in names})
