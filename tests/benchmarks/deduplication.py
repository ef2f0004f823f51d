"""Deduplication of many short documents: time and memory of the build's stages `prepare` and `decide`.

    python tests/benchmarks/deduplication.py DOCUMENTS [--workers 2] [--folder DIR]

Made-up texts of 60 to 120 bytes, of which one in ten is a copy of an earlier one and one in ten is one with
another word. Each stage runs as in a build, in processes of its own; the peak of a process is the resident
memory that the kernel counts, with mapped files. DIR needs 0.9 KB per document, and is emptied afterwards.
"""

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from measuring import Cost, cost, fresh, print_table, resident

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import discard_stale_work, list_stages, open_build
from megatron_mathcpt.data.minhash import DUPLICATES
from megatron_mathcpt.data.prepare import load_array
from megatron_mathcpt.log import get_logger

SHARD, CHUNK = 1_000_000, 10_000  # documents of a file, and made at once
VOCABULARY = 5000


def write_shard(path: Path, number: int, count: int) -> None:
    draw = np.random.default_rng(number)
    names = (
        np.random.default_rng(0).integers(97, 123, (VOCABULARY, 6), np.uint8).view("S6").ravel().astype(str)
    )
    texts: list[str] = []
    with path.open("w") as file:
        for low in range(0, count, CHUNK):
            lengths, kinds = draw.integers(9, 17, CHUNK), draw.random(CHUNK)
            ends = np.cumsum(lengths)
            words = names[draw.integers(0, VOCABULARY, ends[-1])].tolist()
            earlier = draw.integers(0, max(1, low), CHUNK)
            for place, (end, length, kind) in enumerate(
                zip(ends.tolist(), lengths.tolist(), kinds, strict=True)
            ):
                text = " ".join(words[end - length : end])
                if low and kind < 0.2:
                    text = texts[earlier[place]]
                    text = text if kind < 0.1 else f"{text.rpartition(' ')[0]} {words[0]}"
                texts.append(text)
                file.write(f'{{"id": "{number}-{low + place}", "text": "{text}"}}\n')


def settings(folder: Path) -> Corpus:
    source = {"pool": "short", "path": str(folder / "raw" / "*.jsonl")}
    rest = {
        "deduplicate": {},
        "decontaminate": None,
        "tokenizer": {"vocab_size": 300},
        "validation_fraction": 0.05,
    }
    return Corpus.model_validate({"name": "short", "seed": 1, "sources": {"made": source}, **rest})


def run_tasks(folder: Path, stage: str, ranks: Sequence[int]) -> tuple[Cost, float, list[str]]:
    """What these tasks of a stage cost in this process, its peak in bytes, and what it logged."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    get_logger("benchmark")
    logging.getLogger("megatron_mathcpt").addHandler(handler)
    tasks = next(
        one for one in list_stages(open_build(settings(folder), folder / "out")) if one.name == stage
    ).tasks
    return cost(lambda: [tasks[rank]() for rank in ranks]), resident(), lines


def main(
    documents: int, workers: int = 2, folder: Annotated[Path | None, typer.Option(file_okay=False)] = None
) -> None:
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        shards = range(-(-documents // SHARD))
        (root / "raw").mkdir()
        names = [root / "raw" / f"{number:03}.jsonl" for number in shards]
        counts = [min(SHARD, documents - number * SHARD) for number in shards]
        with fresh(workers) as pool:
            list(pool.map(write_shard, names, shards, counts))
        size = sum(path.stat().st_size for path in names)
        print(f"{documents:,} documents, {size / 1e9:.2f} GB of JSON lines; {workers} processes")
        discard_stale_work(open_build(settings(root), root / "out"))
        rows = []
        for stage, parts in (("prepare", [shards[n::workers] for n in range(workers)]), ("decide", [[0]])):
            begin = time.perf_counter()
            with fresh(len(parts)) as pool:
                found = list(pool.map(partial(run_tasks, root, stage), parts))
            wall, cpu = time.perf_counter() - begin, sum(one.cpu for one, *_ in found)
            said = re.findall(
                r"need ([\d.]+) GB", " ".join(chain.from_iterable(lines for *_, lines in found))
            )
            peak = max(memory for _, memory, _ in found) / 1e9
            rows.append((stage, wall, cpu, f"{said[0]} GB" if said else "", f"{peak:.2f} GB"))
        print_table("stage | seconds | CPU seconds | memory predicted | largest process", rows)
        decided = (root / "out" / ".work" / "decided").glob("*/verdicts.u1")
        verdicts = sum(np.bincount(load_array(path), minlength=4) for path in decided)
        print(json.dumps({name: int(verdicts[number]) for number, name in DUPLICATES.items()}))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    typer.run(main)
