"""Pack a pool of problems or chats into samples for fine-tuning; needs no torch.

The pool is cut into blocks of documents, which are read, made records and packed in any order, in any number
of processes. What a block becomes depends only on its documents, and its part is there only once it is
complete. So a killed run resumes with the parts that are missing and ends with the same bytes, and the memory
that it takes does not grow with the pool.
"""

import gc
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_mathcpt.data.sft_records import RecordRule, SftRecords
from megatron_mathcpt.data.workers import ended_by_signals, run_in_processes
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats import manifest as manifests
from megatron_mathcpt.formats.corpus_folder import ADOPTED, KIND, PLACE, SFT_KIND, TRAIN, corpus_counts
from megatron_mathcpt.formats.files import hash_json, parse_row, write_atomically
from megatron_mathcpt.formats.indexed_dataset import Ids, read_documents, read_part
from megatron_mathcpt.formats.manifest import Manifest, load_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.sft_folder import join_parts, open_part, write_part
from megatron_mathcpt.log import get_logger, progress, reporting
from megatron_mathcpt.records import ROLES, JsonObject

WORK = ".work"  # in the folder: packed blocks, until all are
# Of a block: enough samples for the last, which is not full, not to matter.
_TOKENS, _SAMPLES = 2_000_000, 128
_LINES, _PLACES = 4 << 20, 1 << 17  # bytes of documents made records at once, and places looked at
_log = get_logger(__name__)


@dataclass(frozen=True)
class Packing:
    """How records become samples; `too_long` records are dropped, or cut at a step or turn."""

    seq_length: int
    packed: bool = True  # several records in a sample; else each has one of its own
    too_long: Literal["drop", "cut"] = "drop"
    loss_roles: tuple[str, ...] = ("assistant",)

    def __post_init__(self) -> None:
        if not self.loss_roles or (wrong := {*self.loss_roles}.difference(ROLES)):
            found = ", ".join(sorted(wrong)) if self.loss_roles else "none"
            raise ConfigError(f"loss roles: {found}; give some of {', '.join(ROLES)}")


@dataclass(frozen=True)
class Block:
    """Consecutive documents of a pool, and those for training among them by their numbers in the dataset."""

    first: int
    count: int
    offset: int  # of the first one's line
    train_first: int
    train_count: int
    tokens: int


@dataclass(frozen=True)
class Pack:
    """The work of packing one pool: what a process needs for any of its blocks."""

    documents: Path  # the pool's, .jsonl
    dataset: Path
    rule: RecordRule
    packed: bool
    work: Path
    blocks: tuple[Block, ...]

    def part(self, number: int) -> Path:
        return self.work / f"{number:06d}.part"

    def missing(self) -> list[int]:
        return [number for number in range(len(self.blocks)) if not self.part(number).is_file()]


def pack_pool(corpus: Path, pool: str, out: Path, packing: Packing, workers: int | None = None) -> Manifest:
    """Pack the training split of a pool into `out` (manifest kind "sft", see formats/sft_folder.py).

    Counts `documents` = `records` + `not_problems` + those of each `dropped_` reason; with `_tokens`, their
    tokens, and of those that were `cut` the tokens that were cut off.
    """
    manifest = load_manifest(corpus, KIND)
    inputs = {"corpus": manifest.fingerprint()}
    config = {"pool": pool, **asdict(packing), "loss_roles": sorted({*packing.loss_roles})}
    is_packed = partial(manifests.is_complete, out, SFT_KIND, inputs=inputs, config=config)
    if is_packed() and not (out / WORK).exists():
        return load_manifest(out, SFT_KIND)
    if ADOPTED in manifest.config:
        raise DataError(f"{corpus}: has tokens of others, no records to pack; build a corpus of them")
    if pool not in (pools := corpus_counts(manifest).pools):
        raise ConfigError(f"pool '{pool}': not in {corpus}; there is {', '.join(pools)}")
    parts = (f"documents/{pool}.", f"datasets/{pool}/train.", "tokenizer/")
    manifests.verify_part(corpus, manifest, lambda name: name.startswith(parts))
    with ended_by_signals(), locked_folder(out, SFT_KIND, (WORK,)):
        if not is_packed():  # by another process, meanwhile
            pack = _open_pack(corpus, pool, out, manifest, packing)
            _discard_stale_work(out, hash_json([inputs, config, [asdict(block) for block in pack.blocks]]))
            _pack(pack, workers)
            counts = _finish(pack, out)
            manifests.write_manifest(out, SFT_KIND, inputs=inputs, counts=counts, config=config)
        shutil.rmtree(out / WORK, ignore_errors=True)
        return load_manifest(out, SFT_KIND)


def _open_pack(corpus: Path, pool: str, out: Path, manifest: Manifest, packing: Packing) -> Pack:
    info = corpus_counts(manifest).tokenizer
    settings = manifest.config.get("tokenizer", {})
    rule = RecordRule(
        tokenizer=corpus / "tokenizer",
        info=info,
        literals=settings.get("special_literals", "text"),
        engine=settings.get("engine", "auto"),
        seq_length=packing.seq_length,
        cut=packing.too_long == "cut",
        roles=frozenset(packing.loss_roles),
    )
    documents, dataset = corpus / "documents" / f"{pool}.jsonl", corpus / "datasets" / pool / "train"
    blocks = tuple(list_blocks(documents, dataset, max(_TOKENS, _SAMPLES * packing.seq_length)))
    return Pack(documents, dataset, rule, packing.packed, out / WORK, blocks)


def list_blocks(documents: Path, dataset: Path, tokens: int) -> Iterator[Block]:
    """Cut a pool after every multiple of `tokens` for training; reads its places and the dataset's index."""
    passed = np.zeros(3, np.int64)  # bytes of lines, documents for training, their tokens
    begin, seen, block = (0, *passed.tolist()), 0, 0
    with documents.with_suffix(".places").open("rb") as file:
        while len(places := np.fromfile(file, PLACE, _PLACES)):
            train = (places["split"] == TRAIN).astype(np.int64)
            lengths = np.zeros(len(places), np.int64)
            found = read_part(dataset, int(passed[1]), int(train.sum()))[0]
            if len(found) != train.sum():
                what = f"fewer documents than {file.name} says"
                raise DataError(f"{dataset}.idx: {what}; build the corpus again")
            lengths[train == 1] = found
            sums = np.cumsum([places["bytes"], train, lengths], axis=1, dtype=np.int64) + passed[:, None]
            before = np.concatenate((passed[:, None], sums[:, :-1]), axis=1)
            numbers = before[2] // tokens
            for place in np.flatnonzero(np.diff(numbers, prepend=block)).tolist():
                end = (seen + place, *before[:, place].tolist())
                yield _block(begin, end)
                begin = end
            block, passed, seen = int(numbers[-1]), sums[:, -1], seen + len(places)
    if seen > begin[0]:
        yield _block(begin, (seen, *passed.tolist()))


def _block(begin: Sequence[int], end: Sequence[int]) -> Block:
    count, _, train, tokens = (after - before for before, after in zip(begin, end, strict=True))
    return Block(begin[0], count, begin[1], begin[2], train, tokens)


def _discard_stale_work(out: Path, key: str) -> None:
    """Remove unfinished work whose `key` is another: not of exactly this corpus, settings and blocks."""
    work, file = out / WORK, out / WORK / "key"
    if work.exists() and not (file.is_file() and file.read_text() == key):
        file.unlink(missing_ok=True)  # first, so that a kill leaves nothing that looks finished
        shutil.rmtree(work)
    for leftover in out.rglob(".*.tmp"):  # from writes that were killed
        leftover.unlink()
    write_atomically(file, key.encode())


def _pack(pack: Pack, workers: int | None) -> None:
    """Pack the blocks that are missing, and log progress; one worker is this process."""
    missing = pack.missing()
    workers = min(workers or len(os.sched_getaffinity(0)), len(missing))
    run = partial(pack_block, pack)
    names = [f"{pack.documents}, documents from {block.first + 1:,}" for block in pack.blocks]
    alone = (run(number) for number in missing)
    tasks = alone if workers < 2 else run_in_processes(run, missing, workers, names)
    total = sum(block.tokens for block in pack.blocks)
    before = total - sum(pack.blocks[number].tokens for number in missing)

    def said(seconds: float) -> str:
        done = total - sum(pack.blocks[number].tokens for number in pack.missing())
        return f"pack-sft: {progress(done / 1e6, total / 1e6, 'million tokens', before / 1e6, seconds)}"

    with closing(tasks), reporting(_log, said):
        for _ in tasks:
            pass


def pack_block(pack: Pack, number: int) -> None:
    """Make records of the documents of a block, and pack them into its part."""
    records, block = _sft_records(pack.rule, pack.documents), pack.blocks[number]
    records.counts.clear()
    gc.disable()  # records are in no cycle, and looking for one among them takes a fifth of the time
    try:
        made = [record for rows in _read_rows(pack, block) for record in records.make(rows)]
    finally:
        gc.enable()
    lengths = [len(record.tokens) - 1 for record in made]  # the last token of a record predicts nothing
    samples = fill_samples(lengths, pack.rule.seq_length) if pack.packed else [[n] for n in range(len(made))]
    filled = [[made[n] for n in sample] for sample in samples]
    write_part(pack.part(number), filled, pack.rule.dtype, records.counts)


@lru_cache(maxsize=1)  # once for all blocks of a process
def _sft_records(rule: RecordRule, documents: Path) -> SftRecords:
    return SftRecords(rule, documents)


def _read_rows(pack: Pack, block: Block) -> Iterator[list[tuple[JsonObject, Ids]]]:
    """The rows for training of a block, each with its tokens in the dataset, some megabytes at a time."""
    file_of_places, size = pack.documents.with_suffix(".places"), PLACE.itemsize
    places = np.fromfile(file_of_places, PLACE, block.count, offset=block.first * size)
    tokens = iter(read_documents(pack.dataset, block.train_first, block.train_count))
    ends, low, train = np.cumsum(places["bytes"], dtype=np.int64), 0, (places["split"] == TRAIN).tolist()
    with pack.documents.open("rb") as file:
        file.seek(block.offset)
        while low < block.count:
            begin = int(ends[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(ends, begin + _LINES)))
            data, edges = file.read(int(ends[high - 1]) - begin), (ends[low:high] - begin).tolist()
            spans = enumerate(pairwise([0, *edges]), low)
            lines = ((data[a:b], block.first + n + 1) for n, (a, b) in spans if train[n])
            yield [(parse_row(line, file.name, number), next(tokens)) for line, number in lines]
            low = high


def fill_samples(lengths: Sequence[int], seq_length: int) -> list[list[int]]:
    """Which records, of these lengths, are in each sample: whole ones, in order, the longest placed first.

    Each is put where it leaves the least space (best fit, decreasing). Samples are in their records' order.
    """
    samples, spaces, known = list[list[int]](), defaultdict[int, list[int]](list), 0
    for record in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[record]
        if larger := known >> length:  # bit n of `known`: some sample has a space of n
            space = length + (larger & -larger).bit_length() - 1
            sample = spaces[space].pop()
            known ^= 0 if spaces[space] else 1 << space
        else:
            space, sample = seq_length, len(samples)
            samples.append([])
        samples[sample].append(record)
        if left := space - length:
            spaces[left].append(sample)
            known |= 1 << left
    return sorted(sorted(sample) for sample in samples)


def _finish(pack: Pack, out: Path) -> JsonObject:
    """Join the parts in `out`; the counts of all of them."""
    parts = [open_part(pack.part(number)) for number in range(len(pack.blocks))]
    counts = Counter[str]()
    for part in parts:
        counts.update(part.counts)
    if not counts["records"]:
        found = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        raise DataError(f"{pack.documents}: no problems or chats to pack ({found or 'no documents'})")
    reasons = (name for name in counts if name.startswith("dropped_") and not name.endswith("_tokens"))
    assert counts["documents"] == sum(counts[name] for name in (*reasons, "records", "not_problems"))
    samples, length = join_parts(parts, out, pack.rule.dtype), pack.rule.seq_length
    always = ("not_problems", "dropped_too_long", "dropped_too_long_tokens", "cut", "cut_tokens")
    return {
        "samples": samples,
        "seq_length": length,
        **{name: 0 for name in always},
        **dict(sorted(counts.items())),
        "fill": (counts["tokens"] - counts["records"]) / (samples * length),
        "corpus_tokens": sum(block.tokens for block in pack.blocks),  # of the same documents as text
        "tokenizer": pack.rule.info.model_dump(),
    }
