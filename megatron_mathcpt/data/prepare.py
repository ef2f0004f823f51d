"""First stage, per shard: read, clean, filter, decontaminate, and hash what is left for deduplication."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.config.corpus import Corpus, Decontaminate
from megatron_mathcpt.data.decontaminate import Contamination, Hit, benchmark_files
from megatron_mathcpt.data.drops import Drop
from megatron_mathcpt.data.filters import find_drops
from megatron_mathcpt.data.formats import Reject
from megatron_mathcpt.data.minhash import band_keys, number_hashes, signatures, whole_hashes
from megatron_mathcpt.data.select import drop_reason as select_reason
from megatron_mathcpt.data.sources import Document, Shard, Skipped, read_documents
from megatron_mathcpt.data.words import BATCH_CHARACTERS, Words, cut_words
from megatron_mathcpt.data.work import Build, save_array
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import hash_file, write_whole

Flags = npt.NDArray[np.bool_]


def prepare(build: Build, task: int) -> None:
    """Leave kept and dropped documents, hashes and counts of the shard `task`.

    Raises `DataError` naming file and line when more records are unreadable than the source allows, and
    naming the file when it holds no record at all.
    """
    shard = build.shards[task]
    folder = build.folder("prepared", shard)
    worker = _Worker(build.config, shard, _contamination(build.config.decontaminate))
    with ExitStack() as stack:
        files = _Files(*(stack.enter_context(write_whole(folder / f"{n}.jsonl")) for n in _Files._fields))
        for block in read_documents(shard, build.config.sources[shard.source]):
            worker.take(block, files)
        worker.check_rejects(last=True)
    for name, parts in worker.arrays.items():
        save_array(folder / f"{name}.npy", np.concatenate(parts, axis=1 if name == "bands" else 0))
    build.finish("prepared", shard, {**worker.counts(), "sha256": shard.hash()})


def _contamination(config: Decontaminate | None) -> Contamination | None:
    if config is None:
        return None
    key = tuple(hash_file(file) for file in benchmark_files(config))
    return _load_contamination(key, config.model_dump_json())


@lru_cache(maxsize=1)  # a process that prepares many shards indexes the benchmarks once
def _load_contamination(key: tuple[str, ...], config: str) -> Contamination:
    return Contamination(Decontaminate.model_validate_json(config))


class _Files(NamedTuple):
    """Where the lines of a shard go: documents, drops, ids of the documents, rejects."""

    kept: BinaryIO
    dropped: BinaryIO
    ids: BinaryIO
    rejected: BinaryIO


class _Worker:
    """Counts and hashes of one shard while it is read."""

    def __init__(self, config: Corpus, shard: Shard, contamination: Contamination | None) -> None:
        self._config, self._shard, self._contamination = config, shard, contamination
        self._source = config.sources[shard.source]
        self._dropped: Counter[str] = Counter()
        self._hits: list[dict[str, Any]] = []
        self._read = self._kept = self._bytes = self._rejected = 0
        self._first_reject: Reject | None = None
        self.arrays: dict[str, list[npt.NDArray[Any]]] = {
            name: [np.empty(0, np.uint64)] for name in ("whole", "numbers", "bytes", "lines")
        }
        if rule := config.deduplicate:
            self.arrays["signatures"] = [np.empty((0, rule.bands * rule.rows), np.uint32)]
            self.arrays["bands"] = [np.empty((rule.bands, 0), np.uint64)]

    def take(self, block: list[Document | Skipped | Reject], files: _Files) -> None:
        """Sort one block of records into kept, dropped and rejected."""
        self._read += len(block)
        good = []
        drops = iter(self._find_drops([record for record in block if isinstance(record, Document)]))
        for record in block:
            if isinstance(record, Reject):
                self._first_reject = self._first_reject or record
                self._rejected += 1
                files.rejected.write(_dump({**self._where(record.line), "reason": record.reason}))
            elif isinstance(record, Skipped):
                self._drop(files.dropped, record.reason, record.line, {"id": record.id})
            elif drop := next(drops):
                detail = (
                    {} if drop.limit is None else {"detail": {"measured": drop.measured, "limit": drop.limit}}
                )
                self._drop(files.dropped, drop.reason, record.line, {**_row(record), **detail})
            else:
                good.append(record)
        self.check_rejects()
        for batch in batches(good):
            self._take_batch(batch, files)

    def _find_drops(self, documents: list[Document]) -> list[Drop | None]:
        """What selection says of each document, else what the filter of the source or of the build says."""
        drops = {number: drop for number, row in enumerate(documents) if (drop := self._not_selected(row))}
        rest = [number for number in range(len(documents)) if number not in drops]
        rules = self._source.filter or self._config.filter
        found = zip(rest, find_drops([documents[number].text for number in rest], rules), strict=True)
        return [drop for _, drop in sorted([*drops.items(), *found], key=itemgetter(0))]

    def _not_selected(self, document: Document) -> Drop | None:
        if document.problem is None or self._source.select is None:
            return None
        reason = select_reason(document.problem, self._source.select)
        return Drop(reason) if reason else None

    def _take_batch(self, batch: list[Document], files: _Files) -> None:
        words = cut_words([document.text for document in batch])
        problems = np.array([document.problem is not None for document in batch])
        hits = self._contamination.search(words, problems) if self._contamination else {}
        clean = np.ones(len(batch), np.bool_)
        clean[list(hits)] = False
        for number, document in enumerate(batch):
            row = _row(document)
            if number in hits:
                row["detail"] = asdict(hits[number])
                self._drop(files.dropped, "contaminated", document.line, row)
                self._note_hit(document, hits[number])
            else:
                files.kept.write(_dump(row))
                files.ids.write(_dump(document.id))
        self._kept += int(clean.sum())
        self._note_hashes(batch, words, problems, clean)

    def _note_hashes(self, batch: list[Document], words: Words, problems: Flags, clean: Flags) -> None:
        sizes = np.array([len(document.text.encode()) for document in batch], np.uint64)
        self.arrays["whole"].append(whole_hashes(words)[clean])
        self.arrays["numbers"].append((number_hashes(words) * problems)[clean])
        self.arrays["bytes"].append(sizes[clean])
        self.arrays["lines"].append(np.array([document.line for document in batch], np.uint64)[clean])
        self._bytes += int(sizes.sum())
        if rule := self._config.deduplicate:
            rows = signatures(words, rule.shingle_words, rule.bands * rule.rows)[clean]
            self.arrays["signatures"].append(rows)
            self.arrays["bands"].append(band_keys(rows, rule.bands))

    def _drop(self, dropped: BinaryIO, reason: str, line: int, row: dict[str, Any]) -> None:
        self._dropped[reason] += 1
        dropped.write(_dump({"reason": reason, **self._where(line), **row}))

    def _where(self, line: int) -> dict[str, Any]:
        return {"shard": self._shard.name, "file": str(self._shard.path), "line": line}

    def _note_hit(self, document: Document, hit: Hit) -> None:
        self._hits.append({"document": document.id, **asdict(hit)})

    def check_rejects(self, last: bool = False) -> None:
        """Stop at the first reject when none is allowed, else at the end when there are too many."""
        reject, limit = self._first_reject, self._source.reject_limit
        if last and not self._read:
            raise DataError(f"{self._shard.path}: no records; remove the file or give one with content")
        if reject and (limit == 0 or (last and self._rejected > limit * self._read)):
            raise DataError(
                f"{self._shard.path}:{reject.line}: {reject.reason}; correct the line, or raise sources."
                f"{self._shard.source}.reject_limit (rejected {self._rejected} of {self._read})"
            )

    def counts(self) -> dict[str, Any]:
        """Read, rejected, kept, dropped by reason, bytes of text, and decontamination hits."""
        return {
            "read": self._read,
            "rejected": self._rejected,
            "kept": self._kept,
            "dropped": dict(sorted(self._dropped.items())),
            "bytes": self._bytes,
            "hits": self._hits,
        }


def batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """`documents` in order, in lists of about `BATCH_CHARACTERS` characters of text."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _dump(row: Any) -> bytes:
    """One JSON line; values that JSON does not know (dates and bytes of Parquet) become text."""
    return orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def _row(document: Document) -> dict[str, Any]:
    row: dict[str, Any] = {"id": document.id, "source": document.source, "text": document.text}
    if document.problem is not None:
        row["problem"] = document.problem.model_dump(exclude={"id", "source"})
    return row
