"""A corpus folder, written with the formats' own writers, is read field by field."""

import json
from pathlib import Path

import numpy as np

from megatron_mathcpt.formats.corpus_folder import (
    KIND,
    CorpusCounts,
    Kept,
    PoolCounts,
    RawFile,
    Selection,
    SourceCounts,
    SplitCounts,
    TokenizerCounts,
    corpus_counts,
    make_places,
    open_corpus,
)
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.indexed_dataset import dataset_writer, read_document, token_dtype
from megatron_mathcpt.formats.manifest import write_manifest

COUNTS = CorpusCounts(
    tokenizer=TokenizerCounts(vocab_size=500, eos_id=7, sha256="f" * 64),
    pools={
        "general": PoolCounts(
            train=SplitCounts(documents=2, tokens=5), validation=SplitCounts(documents=1, tokens=3)
        )
    },
    sources={"wiki": SourceCounts(read=5, kept=3, rejected=1, dropped={"too_short": 1})},
)
SHARDS = (RawFile("wiki-00000", "wiki", "raw/a.jsonl"), RawFile("wiki-00001", "wiki", "raw/b.jsonl"))
ROWS = [{"id": name, "source": "wiki", "text": f"Satz {name} über ∑"} for name in "abc"]
# shard, line of the raw file, split, number in the split's dataset, tokens
PLACES = [(0, 1, "train", 0, [1, 7]), (0, 4, "validation", 0, [2, 3, 7]), (1, 2, "train", 1, [4, 5, 7])]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
    write_atomically(tmp_path / "documents" / "general.jsonl", b"".join(lines))
    places = b"".join(
        make_places([len(line)], shard, np.array([number], np.uint64), np.array([split == "validation"]))
        for line, (shard, number, split, *_) in zip(lines, PLACES, strict=True)
    )
    write_atomically(tmp_path / "documents" / "general.places", places)
    for split in ("train", "validation"):
        with dataset_writer(tmp_path / "datasets" / "general" / split, token_dtype(500)) as writer:
            for ids in (ids for *_, own, _, ids in PLACES if own == split):
                writer.write(np.array(ids, np.int32), np.array([len(ids)], np.int32))
    report = {"shards": [shard._asdict() for shard in SHARDS]}
    write_atomically(tmp_path / "report.json", json.dumps(report).encode())
    config = {"name": "made", "sources": {"wiki": {"pool": "general"}}}
    manifest = write_manifest(tmp_path, KIND, inputs={"raw": "1"}, counts=COUNTS, config=config)

    corpus = open_corpus(tmp_path)
    assert (corpus.root, corpus.manifest, corpus.shards) == (tmp_path, manifest, SHARDS)
    assert (corpus.pools, corpus_counts(corpus.manifest)) == ({"general": ["wiki"]}, COUNTS)
    kept = [
        Kept("general", number, split, index, SHARDS[shard], line, row)
        for number, ((shard, line, split, index, _), row) in enumerate(zip(PLACES, ROWS, strict=True))
    ]
    assert list(corpus.documents("general", range(3))) == kept
    assert list(corpus.choose(Selection("general", split="train"), [1])) == [kept[2]]
    assert [corpus.at(one.shard, one.line) for one in kept] == kept
    assert corpus.at(SHARDS[1], 1) is None
    for one, (*_, ids) in zip(kept, PLACES, strict=True):
        assert read_document(corpus.dataset(one.pool, one.split), one.index)[1].tolist() == ids
