"""Samples: Megatron-Core's GPTDataset and BlendedDataset, packed SFT, and validation sets read in order.

A batch is computed from `consumed_samples`, so there is no iterator position to save or restore. `trace_step`
is the inverse: from a step of a run to the documents it saw.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.datasets import helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError, DataError, ManifestError
from megatron_mathcpt.formats.corpus_folder import SFT_KIND, SPLITS, TRAIN, Selection, open_corpus, sft_counts
from megatron_mathcpt.formats.files import hash_json, read_rows
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes, verify_part, write_manifest
from megatron_mathcpt.formats.run_folder import INDEX_CACHE
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.model.documents import Documents, context_positions, pack_documents
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.train.inputs import Inputs, recorded_config, resolve_inputs

INDEX = "sample index"  # kind of the folder of a blend's index
_SHOWN_CHARACTERS = 60
_SFT_FIELDS = ("tokens", "labels", "documents")
logger = get_logger(__name__)
Sample = dict[str, torch.Tensor]


class Samples(Protocol):
    """A map-style dataset, of training, validation or the gate."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Batch:
    """One microbatch; every tensor is [samples, sequence]."""

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor  # 1.0 where the loss counts
    position_ids: torch.Tensor
    sources: torch.Tensor | None = None  # each token's pool by number, if losses are reported by pool
    documents: Documents | None = None  # within which causal attention stays

    @classmethod
    def collate(cls, samples: list[Sample], size: int = 1, rank: int = 0, *, fused: bool = False) -> "Batch":
        """Stack samples, at the positions of context-parallel rank `rank` of `size`."""
        # A sample's own `documents` are each token's document number. A model with packed attention (`fused`)
        # takes a sample without them as one document.
        names = [field.name for field in fields(cls) if field.name in samples[0].keys() - {"documents"}]
        numbers = [sample.get("documents", torch.zeros_like(sample["tokens"])) for sample in samples]
        positions = context_positions(len(numbers[0]), size, rank) if size > 1 else slice(None)
        stacked = {name: torch.stack([sample[name] for sample in samples])[:, positions] for name in names}
        # Documents are described for whole samples: queries of this rank attend to keys of all ranks.
        described = fused or "documents" in samples[0]
        documents = pack_documents(torch.stack(numbers), size, rank) if described else None
        return cls(**stacked, documents=documents)

    def pinned(self) -> "Batch":
        """Copy to page-locked memory, from which transfers to a GPU are asynchronous."""
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors()}
        return replace(self, **pinned, documents=self.documents)

    def to(self, device: torch.device) -> "Batch":
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors()}
        return replace(self, **moved, documents=None if self.documents is None else self.documents.to(device))

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)]


class SftDataset(Dataset[Sample]):
    """The samples of an "sft" folder, repeated to `samples`; sample i is the same in every run and layout."""

    def __init__(self, folder: Path, samples: int, seed: int) -> None:
        self._length = sft_counts(load_manifest(folder, SFT_KIND)).seq_length
        arrays = (folder / f"{name}.npy" for name in ("tokens", "trained", "lengths", "samples"))
        self._tokens, self._trained, self._lengths, self._samples = map(_open_array, arrays)
        self._seed = seed
        self._order = (-1, np.empty(0, dtype=np.int64))  # an epoch and its order
        self.dataset_index = np.zeros(samples, dtype=np.int16)  # of its only pool, as in a blend

    def __len__(self) -> int:
        return len(self.dataset_index)

    def row(self, index: int) -> int:
        size = len(self._samples) - 1  # the last row is their end
        epoch, place = divmod(index, size)
        known, order = self._order  # one attribute, read once: each virtual stage has a reader thread
        if epoch != known:
            order = np.random.default_rng([self._seed, epoch]).permutation(size)
            self._order = (epoch, order)
        return int(order[place])

    def __getitem__(self, index: int) -> Sample:
        row = self.row(index)
        (first, begin), (last, end) = self._samples[row : row + 2].tolist()
        ids, sizes = self._tokens[begin:end].astype(np.int64), self._lengths[first:last].astype(np.int64)
        trained, ends = self._trained[begin:end], sizes.cumsum()
        # A record of n tokens takes n - 1 positions: its last one is no input, its first one no label. The
        # rest of the sample is a document of its own without trained tokens.
        used, sample = len(ids) - len(sizes), {name: torch.zeros(self._length).long() for name in _SFT_FIELDS}
        sample["tokens"][:used] = torch.from_numpy(np.delete(ids, ends - 1))
        # Any token id where nothing is trained; the loss mask excludes these.
        sample["labels"][:used] = torch.from_numpy(np.delete(ids * trained, ends - sizes))
        sample["documents"][:used] = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes - 1))
        sample["documents"][used:] = len(sizes)
        mask = torch.zeros(self._length)
        mask[:used] = torch.from_numpy(np.delete(trained, ends - sizes).astype(np.float32))
        return sample | {"loss_mask": mask, "position_ids": torch.arange(self._length)}


def _open_array(path: Path) -> np.ndarray:
    """Map a `.npy` of numbers; `DataError` for anything else, such as objects, which are pickles."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError) as error:  # the header is a Python literal
        raise DataError(f"{path}: no array of numbers ({error}); build it again") from error
    if not isinstance(found, np.ndarray):  # a zip of several
        raise DataError(f"{path}: no array of numbers; build it again")
    return found


class AnnotatedBlend(Dataset[Sample]):
    """A blend that adds each sample's pool, if `sources`, and each token's document, if `eos_id` is given."""

    def __init__(self, blend: BlendedDataset, *, sources: bool, eos_id: int | None) -> None:
        self._blend, self._sources, self._eos_id = blend, sources, eos_id
        self.dataset_index = blend.dataset_index
        self.dataset_sample_index = blend.dataset_sample_index

    def __len__(self) -> int:
        return len(self._blend)

    def __getitem__(self, index: int) -> Sample:
        sample = dict(self._blend[index])
        if self._sources:
            sample["sources"] = torch.full_like(sample["tokens"], int(self.dataset_index[index]))
        if self._eos_id is not None:
            ends = sample["tokens"] == self._eos_id  # each belongs to the document it ends
            sample["documents"] = ends.cumsum(0) - ends.long()
        return sample


TrainDataset = SftDataset | AnnotatedBlend


def build_train_dataset(inputs: Inputs, run_folder: Path) -> TrainDataset:
    """Open the packed SFT samples, or the blend, whose index rank 0 builds once and renames into place."""
    config = inputs.config
    if config.data.sft is not None:
        return SftDataset(config.data.sft, config.train.train_samples, config.seed)
    cache = index_cache(inputs, run_folder)
    if dist.get_rank() == 0 and (problem := problem_of_cache(cache)):
        if cache.exists():
            logger.warning("%s; building it again", problem)
        shutil.rmtree(cache.parent, ignore_errors=True)  # of another budget, damaged, or cut short by a kill
        building = cache.with_suffix(".building")
        try:
            build_blend(inputs, building)
        except OSError as error:  # Megatron-Core and numpy write its files
            why = f"{error.filename or building}: {error.strerror or error}"
            raise DataError(f"{why}; make room and run again") from error
        write_manifest(building, INDEX, inputs=inputs.fingerprints, counts={}, config={})
        building.rename(cache)
    dist.barrier()
    eos_id = inputs.eos_id if config.data.reset_attention_mask else None
    return AnnotatedBlend(build_blend(inputs, cache), sources=config.logging.loss_by_source, eos_id=eos_id)


def index_cache(inputs: Inputs, run_folder: Path) -> Path:
    """Folder of the blend's index, named by the hash of what determines it."""
    config = inputs.config
    budget = [config.train.train_samples, config.train.seq_length, config.seed]
    # Megatron-Core's names of the files in it depend on the corpus's path.
    prints = [found for name, found in inputs.fingerprints.items() if name.startswith("corpus")]
    data = [*prints, *map(str, config.data.corpora), config.data.blend]
    return run_folder / INDEX_CACHE / hash_json([*data, *budget])[:16]


def problem_of_cache(cache: Path) -> str:
    """Why the index in `cache` must not be read, or an empty string; Megatron-Core would run its pickles."""
    try:
        manifest = load_manifest(cache, INDEX)
        verify_hashes(cache, manifest)
        for path in cache.glob("*.npy"):
            if path.name not in manifest.outputs:
                return f"{path}: not in the manifest"
            _open_array(path)
    except (ManifestError, DataError) as error:
        return str(error)
    return ""


def build_blend(inputs: Inputs, cache: Path) -> BlendedDataset:
    """Build Megatron-Core's blend of the pools, its index read from `cache` or written there."""
    config = inputs.config
    total, shares = config.train.train_samples, config.data.shares()
    weights = list(shares.values())
    prefixes = [dataset_prefix(config, pool, "train") for pool in shares]
    # All that GPTDataset needs of a tokenizer; no token is padding, so none is masked by its id.
    identifiers = {"eod": inputs.eos_id}
    tokenizer = SimpleNamespace(pad=-1, vocab_size=None, eod=inputs.eos_id, unique_identifiers=identifiers)
    no = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "create_attention_mask")
    settings = GPTDatasetConfig(
        random_seed=config.seed,
        sequence_length=config.train.seq_length,
        path_to_cache=str(cache),
        blend=(prefixes, weights),
        split="1,0,0",
        tokenizer=tokenizer,
        **dict.fromkeys(no, False),
    )
    # Samples of each pool by Megatron-Core's blend itself: counts from the shares alone can leave a pool a
    # sample short, which is an index error late in the run (Megatron-LM, issue 705).
    pool_of, sample_of = np.zeros(total, dtype=np.int16), np.zeros(total, dtype=np.int64)
    helpers.build_blending_indices(pool_of, sample_of, weights, len(weights), total, False)
    datasets = []
    for prefix, count in zip(prefixes, np.bincount(pool_of, minlength=len(weights)).tolist(), strict=True):
        indexed = IndexedDataset(prefix, mmap=True)
        documents = np.arange(len(indexed.sequence_lengths), dtype=np.int32)
        datasets.append(GPTDataset(indexed, prefix, documents, count, Split.train, settings))
    return BlendedDataset(datasets, weights, total, settings)


def dataset_prefix(config: ExperimentConfig, pool: str, split: str) -> str:
    folder = _corpus_of(config, pool)
    return str(folder / "datasets" / pool / split)


def _corpus_of(config: ExperimentConfig, pool: str) -> Path:
    """The one of the run's corpora that has this pool (`resolve_inputs` has checked that it is one)."""
    first, *others = config.data.corpora
    having = (folder for folder in others if pool in load_manifest(folder, "corpus").counts["pools"])
    return next(having, first)


class SourceCounter:
    """Counts the tokens of each pool, or of "sft", up to a step, from where it was last called."""

    def __init__(self, dataset: TrainDataset, config: ExperimentConfig) -> None:
        self._pool_of, self._train = dataset.dataset_index, config.train
        self._pools = list(config.data.blend) or ["sft"]
        self._samples, self._counts = 0, np.zeros(len(self._pools), dtype=np.int64)

    def up_to(self, step: int) -> dict[str, int]:
        """Tokens seen by the end of `step`; no step may be before the last one given."""
        seen = step * self._train.global_batch_size
        self._counts += np.bincount(self._pool_of[self._samples : seen], minlength=len(self._pools))
        self._samples = seen
        return dict(zip(self._pools, (self._counts * self._train.seq_length).tolist(), strict=True))


def microbatches(
    dataset: Samples, samples: range, size: int, layout: Layout, *, fused: bool = False
) -> Iterator[Batch]:
    """Yield this replica's microbatches of `size` samples out of `samples`; prefetch one in a thread."""
    stride = size * layout.data_size
    starts = iter(range(samples.start + layout.data_rank * size, samples.stop, stride))
    parts, rank = layout.sizes.context_parallel_size, layout.groups.cp.rank()

    def read() -> Batch | None:
        start = next(starts, None)
        if start is None:
            return None
        rows = [dict(dataset[index]) for index in range(start, min(start + size, len(dataset)))]
        if len(rows) < size:
            # Past the end: masked samples, so that all replicas run the same number of microbatches.
            empty = {key: torch.zeros_like(value) for key, value in dataset[0].items() if key != "dataset_id"}
            rows += [empty] * (size - len(rows))
        batch = Batch.collate(rows, parts, rank, fused=fused)
        return batch.pinned() if layout.device.type == "cuda" else batch

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read)
        while (batch := following.result()) is not None:
            following = reader.submit(read)
            yield batch.to(layout.device)


class ValidationSet:
    """A pool's validation split cut into sequences in order, so that each token is predicted exactly once."""

    def __init__(self, config: ExperimentConfig, pool: str) -> None:
        prefix, self._length = dataset_prefix(config, pool, "validation"), config.train.seq_length
        dtype = IndexedDataset(prefix, mmap=True).index.dtype
        self._tokens = np.memmap(f"{prefix}.bin", dtype=dtype, mode="r")
        samples = -(-(len(self._tokens) - 1) // self._length)
        self._samples = min(samples, config.validation.samples or samples)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Sample:
        length = self._length
        text = torch.from_numpy(self._tokens[index * length : (index + 1) * length + 1].astype(np.int64))
        positions = torch.arange(length)
        mask = (positions < len(text) - 1).float()
        text = torch.nn.functional.pad(text, (0, length + 1 - len(text)))
        return {"tokens": text[:-1], "labels": text[1:], "loss_mask": mask, "position_ids": positions}


@dataclass(frozen=True)
class TracedDocument:
    sample: int
    pool: str
    document: int
    record: str
    text: str


def trace_step(run_folder: Path, step: int) -> list[TracedDocument]:
    """Find every document that `step` (from 1) trained on, in order; `ConfigError` if there is none."""
    config = recorded_config(run_folder)
    if not 1 <= step <= config.train.train_steps:
        raise ConfigError(f"step {step}: {run_folder} has steps 1 to {config.train.train_steps}")
    for folder in filter(None, (*config.data.corpora, config.data.sft)):
        verify_part(folder, load_manifest(folder, None))
    size = config.train.global_batch_size
    samples = range((step - 1) * size, step * size)
    if config.data.sft is not None:
        dataset = SftDataset(config.data.sft, config.train.train_samples, config.seed)
        ids = read_rows(config.data.sft / "records.jsonl", list[str])  # of each row's records
        rows = [(sample, dataset.row(sample)) for sample in samples]
        return [TracedDocument(sample, "sft", row, record, "") for sample, row in rows for record in ids[row]]
    inputs = resolve_inputs(config)
    cache = index_cache(inputs, run_folder)
    if problem := problem_of_cache(cache):
        remedy = "start the run to build it (if it is finished, after removing its manifest.json)"
        raise DataError(f"{problem}: the run's sample index is missing or damaged; {remedy}")
    blend, pools = build_blend(inputs, cache), list(config.data.blend)
    seen: list[tuple[int, str, int]] = []
    for sample in samples:
        pool, place = int(blend.dataset_index[sample]), int(blend.dataset_sample_index[sample])
        # Only this private method knows the documents of a sample; in 0.19 it returns a third item.
        documents = blend.datasets[pool]._query_document_sample_shuffle_indices(place)[1]
        seen += [(sample, pools[pool], int(document)) for document in documents]
    records: dict[tuple[str, int], JsonObject] = {}
    for name in {name for _, name, _ in seen}:
        numbers = [document for _, owner, document in seen if owner == name]
        kept = open_corpus(_corpus_of(config, name)).choose(Selection(name, split=SPLITS[TRAIN]), numbers)
        records |= {(name, one.index): one.row for one in kept}
    found = [(at, records[at[1:]]) for at in seen]
    return [TracedDocument(*at, record=row["id"], text=row["text"][:_SHOWN_CHARACTERS]) for at, row in found]
