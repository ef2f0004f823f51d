"""The folder of a finished corpus: its sources and pools, and its documents by number or by raw line.

`documents/<pool>.places` has one record of 17 bytes per document, in document order: where it is in
`documents/<pool>.jsonl`, in its raw file and in the datasets (its number among those of its split is its
number in the indexed dataset). It is memory-mapped, so that no corpus is ever loaded whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import Field

from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.files import Row, parse_row
from megatron_mathcpt.formats.indexed_dataset import read_document
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest, verify_part
from megatron_mathcpt.formats.tokenizer_folder import TokenizerCounts, read_tokenizer
from megatron_mathcpt.records import JsonObject

KIND, SFT_KIND = "corpus", "sft"
ADOPTED = "adopted"  # key of a manifest's config, of the prefix of each pool and split
TRAIN, VALIDATION = range(2)
SPLITS = {TRAIN: "train", VALIDATION: "validation"}  # by their number in a document's place
BLOCK = 1 << 20  # places processed together: 17 MB

# Bytes of the JSON line with its line feed; number of the raw file in the report's `shards`; line or row in
# it, from 1; split as in SPLITS. Sizes, not offsets: shards are joined by concatenation, without rewriting.
PLACE = np.dtype([("bytes", "<u4"), ("shard", "<u4"), ("line", "<i8"), ("split", "u1")])
Places = npt.NDArray[np.void]  # of PLACE
Numbers = npt.NDArray[np.unsignedinteger]


class SplitCounts(Row):
    documents: int = 0
    tokens: int = 0
    unended: int = 0  # documents of an adopted dataset that do not end with the end token


class PoolCounts(Row):
    train: SplitCounts = SplitCounts()
    validation: SplitCounts = SplitCounts()


class SourceCounts(Row):
    """Documents of a source: `read` = `kept` + `rejected` + the sum of `dropped`, which is by reason.

    `answers` counts the problems that passed the filters by how their answers were found.
    """

    read: int
    kept: int
    rejected: int
    dropped: dict[str, int]
    answers: dict[str, int] = Field(default_factory=dict)


class CorpusCounts(Row):
    tokenizer: TokenizerCounts
    pools: dict[str, PoolCounts]
    sources: dict[str, SourceCounts]


class SftCounts(Row):
    samples: int
    seq_length: int
    tokenizer: TokenizerCounts


def corpus_counts(manifest: Manifest) -> CorpusCounts:
    return CorpusCounts.model_validate(manifest.counts)


def tokens_built(folders: Iterable[Path]) -> dict[str, float]:
    """Training tokens of each pool of those folders that are finished corpora."""
    finished = (load_manifest(folder, KIND) for folder in folders if (folder / FILE_NAME).is_file())
    pools = (corpus_counts(manifest).pools for manifest in finished)
    return {pool: float(counts.train.tokens) for one in pools for pool, counts in one.items()}


def sft_counts(manifest: Manifest) -> SftCounts:
    return SftCounts.model_validate(manifest.counts)


class RawFile(NamedTuple):
    name: str  # of its shard in the build
    source: str
    file: str


@dataclass(frozen=True)
class Kept:
    """One document: its number in `documents/<pool>.jsonl`, from 0, and in the dataset of its split."""

    pool: str
    number: int
    split: str
    index: int
    shard: RawFile
    line: int
    row: JsonObject


class Selection(NamedTuple):
    """Documents of one pool, optionally of one of its sources and of one split."""

    pool: str
    source: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{what} '{name}'" for what, name in self._asdict().items() if name)


@dataclass(frozen=True)
class CorpusFolder:
    root: Path
    manifest: Manifest
    shards: tuple[RawFile, ...]
    pools: dict[str, list[str]]  # names of their sources

    def places(self, pool: str) -> Places:
        return np.memmap(self.root / "documents" / f"{pool}.places", PLACE, "r")

    def dataset(self, pool: str, split: str) -> Path:
        return self.root / "datasets" / pool / split

    def shard(self, name: str) -> RawFile:
        return next(shard for shard in self.shards if shard.name == name)

    def selections(
        self, pool: str | None = None, source: str | None = None, split: str | None = None
    ) -> list[Selection]:
        """One selection for each pool that matches; raises `ConfigError` with the known names."""
        sources = [name for names in self.pools.values() for name in names]
        there = {"pool": [*self.pools], "source": sources, "split": [*SPLITS.values()]}
        for name, (what, known) in zip((pool, source, split), there.items(), strict=True):
            if name is not None and name not in known:
                raise ConfigError(f"{what} '{name}': not in {self.root}; there is {', '.join(known)}")
        pools = [name for name, names in self.pools.items() if source is None or source in names]
        if pool is not None and pool not in pools:
            names = ", ".join(self.pools[pool])
            raise ConfigError(f"source '{source}': not in pool '{pool}', which has {names}")
        return [Selection(name, source, split) for name in pools if pool in (None, name)]

    def by_source(self, pool: str | None = None, source: str | None = None) -> list[Selection]:
        found = [(one.pool, name) for one in self.selections(pool, source) for name in self.pools[one.pool]]
        return [Selection(owner, name) for owner, name in found if source in (None, name)]

    def blocks(self, selection: Selection) -> Iterator[tuple[int, Places, npt.NDArray[np.bool_]]]:
        """Blocks of a pool's places: number of the first, the places, and a mask of the selected ones."""
        numbers = [n for n, shard in enumerate(self.shards) if selection.source in (None, shard.source)]
        places = self.places(selection.pool)
        splits = [n for n, split in SPLITS.items() if selection.split in (None, split)]
        for low in range(0, len(places), BLOCK):
            block = np.array(places[low : low + BLOCK])
            yield low, block, np.isin(block["shard"], numbers) & np.isin(block["split"], splits)

    def count(self, selection: Selection) -> int:
        return sum(int(chosen.sum()) for _, _, chosen in self.blocks(selection))

    def choose(self, selection: Selection, ordinals: Iterable[int]) -> Iterator[Kept]:
        """Documents by their numbers among the selected, from 0; raises `ConfigError` if there are fewer."""
        wanted, seen, numbers = sorted(set(ordinals)), 0, list[int]()
        for low, _, chosen in self.blocks(selection):
            found = np.flatnonzero(chosen) + low
            numbers += [int(found[n - seen]) for n in wanted if seen <= n < seen + len(found)]
            seen += len(found)
        if wanted and not (wanted[0] >= 0 and wanted[-1] < seen):
            raise ConfigError(f"number {wanted[-1]}: {selection} has {seen} documents, numbered from 0")
        return self.documents(selection.pool, numbers)

    def documents(self, pool: str, numbers: Iterable[int]) -> Iterator[Kept]:
        """Read the documents of `pool` with these ascending numbers, lazily."""
        places, done, offset, before = self.places(pool), 0, 0, np.zeros(len(SPLITS), np.int64)
        with (self.root / "documents" / f"{pool}.jsonl").open("rb") as file:
            for number in numbers:
                # Sum up what lies between: the offset of the line, and how many of each split come before.
                for low in range(done, number, BLOCK):
                    passed = places[low : min(low + BLOCK, number)]
                    offset += int(passed["bytes"].sum(dtype=np.int64))
                    before += np.bincount(passed["split"], minlength=len(SPLITS))
                done, place = number, places[number]
                file.seek(offset)
                row = parse_row(file.read(int(place["bytes"])), file.name, number + 1)
                split, shard = int(place["split"]), self.shards[place["shard"]]
                yield Kept(pool, number, SPLITS[split], int(before[split]), shard, int(place["line"]), row)

    def at(self, shard: RawFile, line: int) -> Kept | None:
        """The document made of this line or row of a raw file; None if it was not kept."""
        pool = next(name for name, sources in self.pools.items() if shard.source in sources)
        for low, block, _ in self.blocks(Selection(pool)):
            found = np.flatnonzero((block["shard"] == self.shards.index(shard)) & (block["line"] == line))
            if len(found):
                return next(self.documents(pool, [int(found[0]) + low]))
        return None


@dataclass(frozen=True)
class AdoptedCorpus(CorpusFolder):
    """Indexed datasets of others: a document is its tokens, in the text of its row as they decode.

    Its raw file is the prefix, its line the number in it.
    """

    def blocks(self, selection: Selection) -> Iterator[tuple[int, Places, npt.NDArray[np.bool_]]]:
        low, counts = 0, corpus_counts(self.manifest).pools[selection.pool]
        for number, split in SPLITS.items():
            count = getattr(counts, split).documents
            for first in range(0, count, BLOCK):
                block = np.zeros(min(BLOCK, count - first), PLACE)
                block["shard"], block["split"] = self._shard_number(selection.pool, split), number
                block["line"] = np.arange(first, first + len(block))
                yield low, block, np.full(len(block), selection.split in (None, split))
                low += len(block)

    def documents(self, pool: str, numbers: Iterable[int]) -> Iterator[Kept]:
        tokenizer = read_tokenizer(self.root / "tokenizer" / "tokenizer.json")
        train = corpus_counts(self.manifest).pools[pool].train.documents
        for number in numbers:
            split, index = (TRAIN, number) if number < train else (VALIDATION, number - train)
            shard = self.shards[self._shard_number(pool, SPLITS[split])]
            ids = read_document(self.dataset(pool, SPLITS[split]), index)[1].tolist()
            text = tokenizer.decode(ids, skip_special_tokens=False)
            row = {"id": f"{shard.file}:{index}", "source": pool, "text": text}
            yield Kept(pool, number, SPLITS[split], index, shard, index, row)

    def _shard_number(self, pool: str, split: str) -> int:
        return self.shards.index(self.shard(f"{pool}-{split}"))


def open_corpus(root: Path) -> CorpusFolder:
    """Open the finished corpus in `root`; raises `ManifestError` if it is not complete."""
    manifest = load_manifest(root, KIND)
    verify_part(root, manifest, lambda name: not name.startswith("datasets/"))
    report = orjson.loads((root / "report.json").read_bytes())
    if "shards" not in report:
        raise DataError(f"{root}: built by an older version; build the corpus again in a new folder")
    pools: dict[str, list[str]] = {}
    for name, source in manifest.config["sources"].items():
        pools.setdefault(source["pool"], []).append(name)
    kind = AdoptedCorpus if ADOPTED in manifest.config else CorpusFolder
    return kind(root, manifest, tuple(RawFile(**shard) for shard in report["shards"]), pools)


def make_places(sizes: Sequence[int], shard: int, lines: Numbers, splits: Numbers) -> bytes:
    places = np.empty(len(sizes), PLACE)
    places["bytes"], places["shard"], places["line"], places["split"] = sizes, shard, lines, splits
    return places.tobytes()
