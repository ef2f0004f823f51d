"""Samples: packed SFT, validation sets read in order, and microbatches of any dataset.

A batch is computed from the step (config/phases.py), so there is no iterator position to save or restore.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch.utils.data import Dataset

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.corpus_folder import SFT_KIND, sft_counts
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.model.documents import Documents, context_positions, pack_documents
from megatron_mathcpt.parallel import Layout

_SFT_FIELDS = ("tokens", "labels", "documents")
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
        self._tokens, self._trained, self._lengths, self._samples = map(open_array, arrays)
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


def open_array(path: Path) -> np.ndarray:
    """Map a `.npy` of numbers; `DataError` for anything else, such as objects, which are pickles."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError) as error:  # the header is a Python literal
        raise DataError(f"{path}: no array of numbers ({error}); build it again") from error
    if not isinstance(found, np.ndarray):  # a zip of several
        raise DataError(f"{path}: no array of numbers; build it again")
    return found


def dataset_prefix(config: ExperimentConfig, pool: str, split: str) -> str:
    folder = corpus_of(config, pool)
    return str(folder / "datasets" / pool / split)


def corpus_of(config: ExperimentConfig, pool: str) -> Path:
    """The one of the run's corpora that has this pool (`resolve_inputs` has checked that it is one)."""
    first, *others = config.data.corpora
    having = (folder for folder in others if pool in load_manifest(folder, "corpus").counts["pools"])
    return next(having, first)


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


def document_numbers(tokens: torch.Tensor, eos_id: int) -> torch.Tensor:
    """Each token's document [tokens], from 0; an end of text belongs to the document it ends."""
    ends = tokens == eos_id
    return ends.cumsum(0) - ends.long()


class ValidationSet:
    """A pool's validation split cut into sequences in order, so that each token is predicted exactly once.

    Attention stays within documents, which end with `eos_id`, if it does so in training.
    """

    def __init__(self, config: ExperimentConfig, pool: str, eos_id: int) -> None:
        prefix, self._length = dataset_prefix(config, pool, "validation"), config.train.seq_length
        self._eos_id = eos_id if config.data.document_attention else None
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
        tokens, labels = text[:-1], text[1:]
        sample = {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": positions}
        more = {} if self._eos_id is None else {"documents": document_numbers(tokens, self._eos_id)}
        return sample | more
