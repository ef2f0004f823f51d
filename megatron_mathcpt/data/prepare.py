"""First build stages: `prepare` reads, cleans, filters and decontaminates a shard; `decide` finds duplicates.

`prepare` needs its shard alone, so that shards run in parallel; `decide` needs the hashes of all of them.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data import minhash
from megatron_mathcpt.data.decontaminate import Contamination, benchmark_files
from megatron_mathcpt.data.filters import find_drops, id_rank, select_drop
from megatron_mathcpt.data.sources import Document, Skipped, SourceShard, read_documents
from megatron_mathcpt.data.tokenizer import tokenizer_file
from megatron_mathcpt.data.words import DIGITS, Indices, batches, cut_words, mix
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import atomic_writer, hash_file, hash_json, write_atomically
from megatron_mathcpt.formats.strict_json import decode_object, encode_json
from megatron_mathcpt.records import JsonObject

DONE = "done.json"  # in a shard's folder: its build stage is finished
Array = npt.NDArray[Any]  # of any element type


@dataclass(frozen=True)
class ShardWork:
    """One shard and the folders for its results of each build stage, complete once they contain `DONE`."""

    shard: SourceShard
    root: Path
    seen: str  # `stamp` of the shard when the build was started

    @property
    def prepared(self) -> Path:
        """By `prepare`: kept.jsonl, dropped.jsonl, rejected.jsonl; of what is kept hashes, sizes, places."""
        return self.root / "prepared" / self.shard.name

    @property
    def decided(self) -> Path:
        """By `decide`: for every kept document verdict, original, split key; by `split`, decision."""
        return self.root / "decided" / self.shard.name

    @property
    def published(self) -> Path:
        """By `publish`: kept.jsonl, places, dropped.jsonl and the datasets of both splits."""
        return self.root / "published" / self.shard.name


def stamp(shard: SourceShard) -> str:
    """What differs after every change of a shard's files, even one that restores their sizes and times."""
    stats = [(str(file), file.stat()) for file in shard.files]
    return hash_json([(name, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in stats])


def changed(work: ShardWork) -> DataError:
    """The error that ends a build because the shard's files have changed; has it prepared again."""
    (work.prepared / DONE).unlink(missing_ok=True)
    remedy = "start the build again, which reads this shard again and no other"
    return DataError(f"{work.shard.path}: changed while the corpus was built from it; {remedy}")


def other_inputs(config: Corpus) -> dict[str, Path]:
    """The inputs of a build that are no shards: benchmarks and tokenizer, by their names in the manifest."""
    files = {f"benchmark/{one.parent.name}/{one.name}": one for one in benchmark_files(config.decontaminate)}
    if path := config.tokenizer.path:
        files["tokenizer"] = tokenizer_file(Path(path))
    return files


def check_inputs(config: Corpus, inputs: dict[str, str]) -> None:
    """Raise `DataError` naming a benchmark or tokenizer that is not as it was when the build was started."""
    files = other_inputs(config)
    for name in {**inputs, **files}:
        if name not in files or inputs.get(name) != hash_file(files[name]):
            found = f"{files.get(name, name)}: changed while the corpus was built with it"
            raise DataError(f"{found}; start the build again")


def read_counts(folder: Path) -> JsonObject:
    return orjson.loads((folder / DONE).read_bytes())  # type: ignore[no-any-return]


def write_counts(folder: Path, counts: JsonObject) -> None:
    """Write a shard's counts, which marks its folder as finished."""
    write_atomically(folder / DONE, orjson.dumps(counts))


def save_array(path: Path, array: Array) -> None:
    with atomic_writer(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> Array:
    """Memory-map an array of `save_array`."""
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def read_rows(works: Sequence[ShardWork], numbers: Indices) -> list[tuple[ShardWork, int, JsonObject]]:
    """For documents by their numbers over all of `works`: shard, line in its raw file, and row."""
    found = list[tuple[ShardWork, int, JsonObject]]()
    order, begin = np.argsort(numbers, kind="stable"), 0
    wanted = numbers[order]
    for work in works if len(numbers) else ():
        ends, lines = (load_array(work.prepared / f"{name}.npy") for name in ("ends", "lines"))
        low, high = np.searchsorted(wanted, (begin, begin + len(ends)))
        with (work.prepared / "kept.jsonl").open("rb") as file:
            for number in (wanted[low:high] - begin).tolist():
                file.seek(place := int(ends[number - 1]) if number else 0)
                row = decode_object(file.read(int(ends[number]) - place))
                found.append((work, int(lines[number]), row))
        begin += len(ends)
    return [found[place] for place in np.argsort(order)]


def prepare(work: ShardWork, config: Corpus, inputs: dict[str, str]) -> None:
    """Sort the records of a shard into `work.prepared`; raises `DataError` if too many are unreadable."""
    shard, folder = work.shard, work.prepared
    before = shard.hash()
    if stamp(shard) != work.seen:
        raise changed(work)
    with ExitStack() as stack:
        names = ("kept", "dropped", "rejected")
        files = {name: stack.enter_context(atomic_writer(folder / f"{name}.jsonl")) for name in names}
        sorter = _Sorter(config, shard, files, inputs)
        for block in read_documents(shard, config.sources[shard.source]):
            sorter.add(block)
        sorter.check_rejects(last=True)
    for name, parts in sorter.arrays.items():
        save_array(folder / f"{name}.npy", np.concatenate(parts, axis=1 if name == "bands" else 0))
    if (sha256 := shard.hash()) != before or stamp(shard) != work.seen:
        raise changed(work)
    dropped = dict(sorted(sorter.dropped.items()))
    known = {"hits": sorter.hits, "sha256": sha256, "seen": work.seen}
    write_counts(folder, {**sorter.counts, "dropped": dropped, **known})


@lru_cache(maxsize=1)  # a process that prepares many shards indexes the benchmarks once
def _load_contamination(
    kind: type[Corpus], config: str, inputs: tuple[tuple[str, str], ...]
) -> Contamination:
    corpus = kind.model_validate_json(config)
    assert corpus.decontaminate
    contamination = Contamination(corpus.decontaminate)
    check_inputs(corpus, dict(inputs))
    return contamination


class _Sorter:
    """Sort the records of one shard into kept, dropped and rejected, with counts and hashes."""

    def __init__(
        self, config: Corpus, shard: SourceShard, files: dict[str, BinaryIO], inputs: dict[str, str]
    ) -> None:
        self._config, self._shard, self._files = config, shard, files
        self._source = config.sources[shard.source]
        self._contamination: Contamination | None = None
        if config.decontaminate:
            key = type(config), config.model_dump_json(), tuple(inputs.items())
            self._contamination = _load_contamination(*key)
        self._first_reject: Skipped | None = None
        self._written = 0  # bytes of kept.jsonl
        self.counts = {"read": 0, "rejected": 0, "kept": 0}
        self.dropped: Counter[str] = Counter()
        self.hits: list[JsonObject] = []
        names = ("whole", "numbers", "bytes", "lines", "ends", *(["ranks"] if self._source.budget else []))
        self.arrays: dict[str, list[Array]] = {name: [np.empty(0, np.uint64)] for name in names}
        if rule := config.deduplicate:
            self.arrays["signatures"] = [np.empty((0, rule.bands * rule.rows), np.uint32)]
            self.arrays["bands"] = [np.empty((rule.bands, 0), np.uint64)]

    def add(self, block: list[Document | Skipped]) -> None:
        self.counts["read"] += len(block)
        good, documents = [], [record for record in block if isinstance(record, Document)]
        select, rules = self._source.select, self._source.filter or self._config.filter
        chosen = [select_drop(d.problem, select) if select and d.problem else None for d in documents]
        # Filters get all texts of the block at once; `drops` has their verdicts in the block's order again.
        rest = [document.text for document, drop in zip(documents, chosen, strict=True) if drop is None]
        found = iter(find_drops(rest, rules))
        drops = iter([drop or next(found) for drop in chosen])
        for record in block:
            if isinstance(record, Document):
                if drop := next(drops):
                    measured = {"measured": drop.measured, "limit": drop.limit}
                    detail = {} if drop.limit is None else {"detail": measured}
                    self._drop(drop.reason, record.line, _row(record) | detail)
                else:
                    good.append(record)
            elif record.id is not None:
                self._drop(record.reason, record.line, {"id": record.id})
            else:
                self._first_reject = self._first_reject or record
                self.counts["rejected"] += 1
                self._write("rejected", {**self._where(record.line), "reason": record.reason})
        self.check_rejects()
        for batch in batches(good, [len(document.text) for document in good]):
            self._add_batch(batch)

    def _add_batch(self, batch: Sequence[Document]) -> None:
        # Words are cut once for decontamination and hashes. A contaminated document is dropped
        # before deduplication, which might keep it and drop its clean near-duplicates.
        words = cut_words([document.text for document in batch])
        problems = np.array([document.problem is not None for document in batch])
        hits = self._contamination.search(words, problems) if self._contamination else {}
        clean = np.ones(len(batch), np.bool_)
        clean[list(hits)] = False
        sizes = list[int]()  # of the rows in kept.jsonl
        for number, document in enumerate(batch):
            if number in hits:
                hit = asdict(hits[number])
                self._drop("contaminated", document.line, {**_row(document), "detail": hit})
                self.hits.append({"document": document.id, **hit})
            else:
                sizes.append(self._write("kept", _row(document)))
        self.counts["kept"] += len(sizes)
        self.arrays["ends"].append(np.cumsum(sizes, dtype=np.uint64) + np.uint64(self._written))
        self._written += sum(sizes)
        found: dict[str, Array] = {
            "whole": words.document_hashes(),
            # Only problems have one: those with other numbers are never near duplicates.
            "numbers": words.select(words.kinds == DIGITS).document_hashes() * problems,
            "bytes": np.array([len(document.text.encode()) for document in batch], np.uint64),
            "lines": np.array([document.line for document in batch], np.uint64),
        }
        if self._source.budget:
            found["ranks"] = np.array([id_rank(document.id) for document in batch], np.uint64)
        if rule := self._config.deduplicate:
            found["signatures"] = minhash.signatures(words, rule.shingle_words, rule.bands * rule.rows)
            self.arrays["bands"].append(minhash.band_keys(found["signatures"][clean], rule.bands))
        for name, array in found.items():
            self.arrays[name].append(array[clean])

    def _drop(self, reason: str, line: int, row: JsonObject) -> None:
        self.dropped[reason] += 1
        self._write("dropped", {"reason": reason, **self._where(line), **row})

    def _where(self, line: int) -> JsonObject:
        return {"shard": self._shard.name, "file": str(self._shard.path), "line": line}

    def _write(self, name: str, row: object) -> int:
        """Write a row; returns its bytes."""
        return self._files[name].write(encode_json(row) + b"\n")

    def check_rejects(self, last: bool = False) -> None:
        """Raise at the first reject if none is allowed, else at the end if there are too many."""
        reject, limit = self._first_reject, self._source.reject_limit
        read, rejected = self.counts["read"], self.counts["rejected"]
        if last and not read:
            raise DataError(f"{self._shard.path}: no records; remove the file or give one with content")
        if reject and (limit == 0 or (last and rejected > limit * read)):
            where, field = f"{self._shard.path}:{reject.line}", f"sources.{self._shard.source}.reject_limit"
            remedy = f"correct the line, or raise {field} (rejected {rejected} of {read})"
            raise DataError(f"{where}: {reject.reason}; {remedy}")


def _row(document: Document) -> JsonObject:
    row: JsonObject = {"id": document.id, "source": document.source, "text": document.text}
    if document.problem is not None:
        row["problem"] = document.problem.model_dump(exclude={"id", "source"})
    return row


def decide(works: Sequence[ShardWork], config: Corpus) -> None:
    """Write for every prepared document whether it is a copy, the document kept for it, and its split key."""
    parts = _mapped(works, "whole")
    whole, sizes = np.concatenate(parts), [len(part) for part in parts]
    verdicts, first = np.full(len(whole), minhash.KEPT, np.uint8), np.arange(len(whole))
    if rule := config.deduplicate:
        every, numbers = _mapped(works, "bands"), np.concatenate(_mapped(works, "numbers"))
        bands = (np.concatenate([part[band] for part in every]) for band in range(rule.bands))
        rows = partial(_gather, _mapped(works, "signatures"))
        verdicts, first = minhash.find_duplicates(whole, numbers, bands, rows, rule.threshold)
    # In [0, 1), from a document's words and the seed alone: it keeps its split when sources are added or
    # reordered.
    salt = mix(np.array([config.seed % (1 << 64)], np.uint64))
    keys = (mix(whole ^ salt) >> np.uint64(11)) / float(1 << 53)
    ends = np.cumsum(sizes)
    left = {pool: 0 for pool in pools_of(config)}
    for work, low, high in zip(works, [0, *ends[:-1]], ends, strict=True):
        left[config.sources[work.shard.source].pool] += int((verdicts[low:high] == minhash.KEPT).sum())
        for name, values in (("verdicts", verdicts), ("first", first), ("keys", keys)):
            save_array(work.decided / f"{name}.npy", values[low:high])
    if empty := [pool for pool, count in left.items() if not count]:
        found = f"pool '{empty[0]}': no document left after filters, deduplication and decontamination"
        raise DataError(f"{found}; loosen the rules or give other sources")


def pools_of(config: Corpus) -> list[str]:
    return list(dict.fromkeys(source.pool for source in config.sources.values()))


def _mapped(works: Sequence[ShardWork], name: str) -> list[Array]:
    return [load_array(work.prepared / f"{name}.npy") for work in works]


def _gather(parts: Sequence[minhash.Signatures], documents: Indices) -> minhash.Signatures:
    """Rows of `documents`, numbered over all of `parts`."""
    # From memory-mapped shards: 448 bytes per document would not fit in memory for a whole corpus.
    begins = np.cumsum([0, *map(len, parts)])
    where = np.searchsorted(begins, documents, side="right") - 1
    rows = np.empty((len(documents), parts[0].shape[1]), np.uint32)
    for number in np.unique(where):
        inside = where == number
        rows[inside] = parts[number][documents[inside] - begins[number]]
    return rows
