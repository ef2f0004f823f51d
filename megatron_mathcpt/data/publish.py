"""Third and fourth stage: the tokenizer; then, per shard, write what stays and tokenize it."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_mathcpt.data.decide import DUPLICATES
from megatron_mathcpt.data.engines import Encoder, EngineName, load_encoder
from megatron_mathcpt.data.reference import Literals
from megatron_mathcpt.data.sources import Shard
from megatron_mathcpt.data.tokenize import ahead, close_documents
from megatron_mathcpt.data.tokenizer import TokenizerInfo, install_tokenizer, train_tokenizer
from megatron_mathcpt.data.work import Build, load_array
from megatron_mathcpt.formats.corpus_folder import SPLITS, VALIDATION, make_places
from megatron_mathcpt.formats.files import hash_file, read_lines, write_whole
from megatron_mathcpt.formats.indexed_dataset import DatasetWriter, token_dtype

_SAMPLE = 64  # documents on which a fast tokenizer engine must agree with the reference


def publish(build: Build, task: int) -> None:
    """Leave documents, their places, duplicates and both datasets of the shard `task`, and its counts."""
    encoder, info = _encoder(build)
    shard = build.shards[task]
    folder = build.folder("published", shard)
    decisions = load_array(build.folder("decided", shard) / "decisions.npy")
    numbers = load_array(build.folder("prepared", shard) / "lines.npy")
    writers = [DatasetWriter(folder / split, token_dtype(info.vocab_size)) for split in SPLITS.values()]
    with ExitStack() as stack:
        kept, places, dropped = (
            stack.enter_context(write_whole(folder / n)) for n in ("kept.jsonl", "places", "dropped.jsonl")
        )
        originals = iter(_originals(build, shard, decisions))
        done = 0
        for _, lines in ahead(read_lines(build.folder("prepared", shard) / "kept.jsonl")):
            part = slice(done, done + len(lines))
            here, origin = np.array(decisions[part]), np.array(numbers[part])
            done += len(lines)
            for number in np.flatnonzero(here > VALIDATION):
                where = {"shard": shard.name, "file": str(shard.path), "line": int(origin[number])}
                row = {"reason": DUPLICATES[here[number]], **where, **orjson.loads(lines[number])}
                dropped.write(orjson.dumps({**row, "detail": next(originals)}) + b"\n")
            for split, writer in zip(SPLITS, writers, strict=True):
                chosen = [lines[number] for number in np.flatnonzero(here == split)]
                if chosen:
                    texts = [orjson.loads(line)["text"] for line in chosen]
                    writer.write(*close_documents(*encoder.encode(texts), info.eos_id))
            stay = np.flatnonzero(here <= VALIDATION)
            kept.writelines(lines[number] + b"\n" for number in stay)
            written = [len(lines[number]) + 1 for number in stay]
            places.write(make_places(written, task, origin[stay], here[stay]))
    counts: dict[str, Any] = {}
    for name, writer in zip(SPLITS.values(), writers, strict=True):
        documents, tokens = writer.close()
        counts[name] = {"documents": documents, "tokens": tokens}
    values, sizes = np.unique(decisions[decisions > VALIDATION], return_counts=True)
    counts["dropped"] = {DUPLICATES[value]: int(size) for value, size in zip(values, sizes, strict=True)}
    build.finish("published", shard, counts)


def install(build: Build, task: int = 0) -> None:
    """Copy the given tokenizer into the build, or train one on what stays."""
    settings, folder = build.config.tokenizer, build.out / "tokenizer"
    if settings.path:
        install_tokenizer(Path(settings.path), folder)
        return
    assert settings.vocab_size is not None
    share = min(1.0, settings.train_megabytes * 1e6 / max(1, kept_bytes(build)))
    train_tokenizer(kept_texts(build, share), settings.vocab_size, folder, settings.added_tokens)


def _encoder(build: Build) -> tuple[Encoder, TokenizerInfo]:
    settings, folder = build.config.tokenizer, build.out / "tokenizer"
    sample = tuple(islice(kept_texts(build, 1.0), _SAMPLE))
    key = hash_file(folder / "tokenizer.json")
    return _load_encoder(key, folder, settings.special_literals, settings.engine, sample)


@lru_cache(maxsize=1)  # a process that publishes many shards loads it once
def _load_encoder(
    key: str, folder: Path, literals: Literals, engine: EngineName, sample: tuple[str, ...]
) -> tuple[Encoder, TokenizerInfo]:
    return load_encoder(folder, literals, engine, sample)


def kept_texts(build: Build, share: float) -> Iterator[str]:
    """Texts of the documents that stay, or of the `share` of them with the smallest split keys."""
    for shard in build.shards:
        decisions, keys = (
            load_array(build.folder("decided", shard) / f"{n}.npy") for n in ("decisions", "keys")
        )
        done = 0
        for _, lines in read_lines(build.folder("prepared", shard) / "kept.jsonl"):
            part = slice(done, done + len(lines))
            done += len(lines)
            for number in np.flatnonzero((decisions[part] <= VALIDATION) & (keys[part] < share)):
                yield orjson.loads(lines[number])["text"]


def kept_bytes(build: Build) -> int:
    """Bytes of text of all documents that stay."""
    total = 0
    for shard in build.shards:
        stay = load_array(build.folder("decided", shard) / "decisions.npy") <= VALIDATION
        total += int(load_array(build.folder("prepared", shard) / "bytes.npy")[stay].sum())
    return total


def _originals(build: Build, shard: Shard, decisions: Any) -> list[dict[str, Any]]:
    """For each duplicate of `shard` in order, id and place of the document that stays."""
    first = load_array(build.folder("decided", shard) / "first.npy")
    wanted = np.array(first[decisions > VALIDATION])
    result: list[dict[str, Any]] = [{}] * len(wanted)
    start = 0
    for other in build.shards:
        if not len(wanted):
            break
        lines = (build.folder("prepared", other) / "ids.jsonl").read_bytes().split(b"\n")[:-1]
        numbers = load_array(build.folder("prepared", other) / "lines.npy")
        for place in np.flatnonzero((wanted >= start) & (wanted < start + len(lines))):
            number = wanted[place] - start
            where = {"shard": other.name, "line": int(numbers[number])}
            result[place] = {"kept": orjson.loads(lines[number]), **where}
        start += len(lines)
    return result
