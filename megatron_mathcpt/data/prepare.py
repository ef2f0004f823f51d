"""First build stage: `prepare` reads, cleans, filters and decontaminates a shard, and hashes what is left.

It needs its shard alone, so that shards run in parallel; data/duplicates.py needs the hashes of all of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.config.corpus import Corpus, Decontaminate
from megatron_mathcpt.data import minhash
from megatron_mathcpt.data.decontaminate import Contamination, benchmark_files
from megatron_mathcpt.data.filters import Drop, find_drops
from megatron_mathcpt.data.object_stores import look_up
from megatron_mathcpt.data.public_sources import FOUND
from megatron_mathcpt.data.sources import Document, Skipped, SourceShard, at_hand, read_documents
from megatron_mathcpt.data.words import DIGITS, Indices, batches, cut_words
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import atomic_writer, hash_file, hash_json, read_range, write_atomically
from megatron_mathcpt.formats.strict_json import encode_json
from megatron_mathcpt.formats.tokenizer_folder import tokenizer_file
from megatron_mathcpt.records import JsonObject, id_rank
from megatron_mathcpt.selection import drop_reason

DONE = "done.json"  # in a shard's folder: its build stage is finished
_COLUMNS = ("whole.u8", "numbers.u8", "bytes.u8", "lines.u8", "ends.u8")  # a value for each kept document
Array = npt.NDArray[Any]  # of any element type


@dataclass(frozen=True)
class ShardWork:
    """One shard and the folders for its results of each build stage, complete once they contain `DONE`."""

    shard: SourceShard
    root: Path
    seen: str  # `stamp` of the shard when the build was started

    @property
    def counted(self) -> Path:
        """By `count_lines`, of a part of a file: the number of its lines."""
        return self.root / "counted" / self.shard.task

    @property
    def prepared(self) -> Path:
        """By `prepare`: kept.jsonl, dropped.jsonl, rejected.jsonl; of what is kept hashes, sizes, places."""
        return self.root / "prepared" / self.shard.task

    @property
    def decided(self) -> Path:
        """By `decide`: for every kept document verdict and original; by `split`, its decision."""
        return self.root / "decided" / self.shard.task

    @property
    def published(self) -> Path:
        """By `publish`: kept.jsonl, places, dropped.jsonl and the datasets of both splits."""
        return self.root / "published" / self.shard.task


def stamp(shard: SourceShard, *, listed: bool = False) -> str:
    """What differs after every change of a shard's files, even one that restores their sizes and times.

    Of files in a store, what it says of them; if they are just `listed`, it is not asked again.
    """
    if shard.stored:
        stored = shard.stored if listed else map(look_up, shard.stored)
        return hash_json([(file.name, file.bytes, file.tag) for file in stored])
    stats = [(str(file), file.stat()) for file in shard.files]
    times = [(name, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in stats]
    return hash_json([times, asdict(shard.part)] if shard.part else times)


def changed(work: ShardWork) -> DataError:
    """The error that ends a build because the shard's files have changed; has it prepared again."""
    (work.prepared / DONE).unlink(missing_ok=True)
    remedy = "start the build again, which reads this shard again and no other"
    return DataError(f"{work.shard.place}: changed while the corpus was built from it; {remedy}")


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
    """Mark a shard's folder as finished, with its counts."""
    write_atomically(folder / DONE, orjson.dumps(counts))


def load_array(path: Path) -> Array:
    """Memory-map a file of values; its suffix is numpy's name of their type."""
    kind = path.suffix.removeprefix(".")
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def array_blocks(paths: Iterable[Path]) -> Iterator[Array]:
    """The values of some of these files, one after the other, in blocks that do not stay in memory."""
    for path in paths:
        with path.open("rb") as file:
            while len(block := np.fromfile(file, path.suffix.removeprefix("."), minhash.BLOCK)):
                yield block


def count_documents(works: Sequence[ShardWork]) -> list[int]:
    return [(work.prepared / "whole.u8").stat().st_size // 8 for work in works]


def locate(sizes: Sequence[int], documents: Indices) -> Iterator[tuple[int, list[int], list[int]]]:
    """Each file with some of `documents`, which are numbered over files of these `sizes`: the file's number,
    and places in `documents` with numbers in the file, in the file's order."""
    order, begins = np.argsort(documents, kind="stable"), np.cumsum([0, *sizes])
    edges = np.searchsorted(documents[order], begins)
    for file in np.flatnonzero(np.diff(edges)).tolist():
        places = order[edges[file] : edges[file + 1]]
        yield file, places.tolist(), (documents[places] - begins[file]).tolist()


def read_field(works: Sequence[ShardWork], documents: Indices, field: str) -> list[tuple[str, str, int]]:
    """For documents by their numbers over all of `works`: a field's value, shard, line in the raw file."""
    found = [("", "", 0)] * len(documents)
    for shard, places, numbers in locate(count_documents(works), documents):
        folder, name = works[shard].prepared, works[shard].shard.name
        ends, lines = load_array(folder / "ends.u8"), load_array(folder / "lines.u8")
        with (folder / "kept.jsonl").open("rb") as file:
            for place, number in zip(places, numbers, strict=True):
                file.seek(begin := int(ends[number - 1]) if number else 0)
                row = orjson.loads(file.read(int(ends[number]) - begin))
                found[place] = row[field], name, int(lines[number])
    return found


def count_lines(work: ShardWork) -> None:
    """Count the lines of a part of a file, for the numbers of those in the parts after it."""
    if (work.counted / DONE).is_file() and read_counts(work.counted)["seen"] == work.seen:
        return
    assert work.shard.part
    lines = sum(block.count(b"\n") for block in read_range(work.shard.path, work.shard.part.span))
    if stamp(work.shard) != work.seen:
        raise changed(work)
    write_counts(work.counted, {"lines": lines, "seen": work.seen})


def _first_line(work: ShardWork) -> int:
    part, name = work.shard.part, work.shard.name
    before = range(part.number if part and part.rows is None else 0)
    counts = (read_counts(work.counted.with_name(f"{name}.{number:05d}")) for number in before)
    return sum((int(count["lines"]) for count in counts), start=1)


def prepare(work: ShardWork, config: Corpus, inputs: dict[str, str]) -> None:
    """Sort the records of a shard into `work.prepared`; raises `DataError` if too many are unreadable."""
    folder = work.prepared
    with ExitStack() as stack:
        shard = stack.enter_context(at_hand(work.shard, work.root / "fetched" / work.shard.task))
        before = shard.hash()
        if stamp(shard) != work.seen:
            raise changed(work)
        names = ["kept.jsonl", "dropped.jsonl", "rejected.jsonl", *_COLUMNS]
        names += ["ranks.u8"] if config.sources[shard.source].budget else []
        names += ["signatures.u4", *band_files(rule.bands)] if (rule := config.deduplicate) else []
        files = {name: stack.enter_context(atomic_writer(folder / name)) for name in names}
        sorter = _Sorter(config, shard, files, inputs)
        for block in read_documents(shard, config.sources[shard.source], _first_line(work)):
            sorter.add(block)
        _check_rejects(shard, config, sorter.counts, last=shard.part is None)
        if (sha256 := shard.hash()) != before or stamp(shard) != work.seen:
            raise changed(work)
    dropped = dict(sorted(sorter.dropped.items()))
    found = {"dropped": dropped, "answers": dict(sorter.answers), "hits": sorter.hits}
    write_counts(folder, sorter.counts | found | {"sha256": sha256, "seen": work.seen})


@lru_cache(maxsize=1)  # a process that prepares many shards indexes the benchmarks once
def _load_contamination(rules: str, _: tuple[tuple[str, str], ...]) -> Contamination:
    return Contamination(Decontaminate.model_validate_json(rules))


class _Sorter:
    """Sort the records of one shard into kept, dropped and rejected, with counts and hashes."""

    def __init__(
        self, config: Corpus, shard: SourceShard, files: dict[str, BinaryIO], inputs: dict[str, str]
    ) -> None:
        self._config, self._shard, self._files = config, shard, files
        self._source = config.sources[shard.source]
        self._contamination: Contamination | None = None
        if config.decontaminate:
            rules = config.decontaminate.model_dump_json()
            self._contamination = _load_contamination(rules, tuple(inputs.items()))
            check_inputs(config, inputs)
        self._written = 0  # bytes of kept.jsonl
        self.counts: JsonObject = {"read": 0, "rejected": 0, "kept": 0, "reject": None}  # the first one
        self.dropped: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()  # of kept problems, by how their answers were found
        self.hits: list[JsonObject] = []

    def add(self, block: list[Document | Skipped]) -> None:
        self.counts["read"] += len(block)
        good, documents = [], [record for record in block if isinstance(record, Document)]
        select, rules = self._source.select, self._source.filter or self._config.filter
        reasons = [drop_reason(d.problem, select) if select and d.problem else None for d in documents]
        chosen = [Drop(reason) if reason else None for reason in reasons]
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
                self.counts["reject"] = self.counts["reject"] or asdict(record)
                self.counts["rejected"] += 1
                self._write("rejected", {**self._where(record.line), "reason": record.reason})
        _check_rejects(self._shard, self._config, self.counts, last=False)
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
                if document.problem and (found_by := document.problem.extra.get(FOUND)):
                    self.answers[found_by] += 1
        self.counts["kept"] += len(sizes)
        ends = np.zeros(len(batch), np.uint64)
        ends[clean] = np.cumsum(sizes, dtype=np.uint64) + np.uint64(self._written)
        self._written += sum(sizes)
        found: dict[str, Array] = {
            "whole.u8": words.document_hashes(),
            # Only problems have one: those with other numbers are never near duplicates.
            "numbers.u8": words.select(words.kinds == DIGITS).document_hashes() * problems,
            "bytes.u8": np.array([len(document.text.encode()) for document in batch], np.uint64),
            "lines.u8": np.array([document.line for document in batch], np.uint64),
            "ends.u8": ends,
        }
        if self._source.budget:
            # With the build's name: a pool that was built with a budget or a share has small ranks only.
            ids = (f"{self._config.name}\n{document.id}" for document in batch)
            found["ranks.u8"] = np.array([*map(id_rank, ids)], np.uint64)
        if rule := self._config.deduplicate:
            rows = minhash.signatures(words, rule.shingle_words, rule.bands * rule.rows)
            found["signatures.u4"] = rows
            found |= zip(band_files(rule.bands), minhash.band_keys(rows, rule.bands), strict=True)
        for name, array in found.items():
            self._files[name].write(array[clean].data)

    def _drop(self, reason: str, line: int, row: JsonObject) -> None:
        self.dropped[reason] += 1
        self._write("dropped", {"reason": reason, **self._where(line), **row})

    def _where(self, line: int) -> JsonObject:
        return {"shard": self._shard.name, "file": self._shard.place, "line": line}

    def _write(self, name: str, row: object) -> int:
        return self._files[f"{name}.jsonl"].write(encode_json(row) + b"\n")


def _check_rejects(shard: SourceShard, config: Corpus, counts: JsonObject, *, last: bool) -> None:
    """Raise at the first reject if none is allowed, else at the end if there are too many."""
    limit = config.sources[shard.source].reject_limit
    read, rejected, reject = counts["read"], counts["rejected"], counts["reject"]
    if last and not read:
        raise DataError(f"{shard.place}: no records; remove the file or give one with content")
    if reject and (limit == 0 or (last and rejected > limit * read)):
        where, field = f"{shard.place}:{reject['line']}", f"sources.{shard.source}.reject_limit"
        remedy = f"correct the line, or raise {field} (rejected {rejected} of {read})"
        raise DataError(f"{where}: {reject['reason']}; {remedy}")


def check_parts(works: Sequence[ShardWork], config: Corpus) -> None:
    """Raise for a file in parts what `prepare` raises at the end of a whole one."""
    for _, (first, *others) in groupby(works, key=lambda work: work.shard.name):
        parts = [read_counts(work.prepared) for work in (first, *others)]
        counts: JsonObject = {name: sum(part[name] for part in parts) for name in ("read", "rejected")}
        counts["reject"] = next((part["reject"] for part in parts if part["reject"]), None)
        _check_rejects(first.shard, config, counts, last=True)


def _row(document: Document) -> JsonObject:
    row: JsonObject = {"id": document.id, "source": document.source, "text": document.text}
    if document.problem is not None:
        row["problem"] = document.problem.model_dump(exclude={"id", "source"})
    if document.messages is not None:
        row["messages"] = document.messages
    return row


def pools_of(config: Corpus) -> list[str]:
    return list(dict.fromkeys(source.pool for source in config.sources.values()))


def band_files(bands: int) -> list[str]:
    return [f"band{number}.u8" for number in range(bands)]
