"""The blend of pools of each phase, from Megatron-Core's GPTDataset and BlendedDataset, and its index."""

import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.datasets import helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_mathcpt.config.phases import Phase, phases_of
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.formats.files import hash_json
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes, write_manifest
from megatron_mathcpt.formats.run_folder import INDEX_CACHE
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.train.datasets import Sample, SftDataset, dataset_prefix, document_numbers, open_array
from megatron_mathcpt.train.inputs import Inputs

INDEX = "sample index"  # kind of the folder of a run's index
logger = get_logger(__name__)


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
            sample["documents"] = document_numbers(sample["tokens"], self._eos_id)
        return sample


TrainDataset = SftDataset | AnnotatedBlend


def build_train_datasets(inputs: Inputs, run_folder: Path) -> list[TrainDataset]:
    """Open the packed samples, or each phase's blend, whose index rank 0 builds and renames into place."""
    config = inputs.config
    if config.data.sft is not None:
        return [SftDataset(config.data.sft, config.train.train_samples, config.seed)]
    cache = index_cache(inputs, run_folder)
    if dist.get_rank() == 0 and (problem := problem_of_cache(cache)):
        if cache.exists():
            logger.warning("%s; building it again", problem)
        shutil.rmtree(cache.parent, ignore_errors=True)  # of another budget, damaged, or cut short by a kill
        building = cache.with_suffix(".building")
        try:
            build_blends(inputs, building)
        except OSError as error:  # Megatron-Core and numpy write its files
            why = f"{error.filename or building}: {error.strerror or error}"
            raise DataError(f"{why}; make room and run again") from error
        write_manifest(building, INDEX, inputs=inputs.fingerprints, counts={}, config={})
        building.rename(cache)
    dist.barrier()
    eos_id = inputs.eos_id if config.data.reset_attention_mask else None
    add = partial(AnnotatedBlend, sources=config.logging.loss_by_source, eos_id=eos_id)
    return [add(blend) for blend in build_blends(inputs, cache)]


def index_cache(inputs: Inputs, run_folder: Path) -> Path:
    """Folder of the blend's index, named by the hash of what determines it."""
    config = inputs.config
    budget = [config.train.train_samples, config.train.seq_length, config.seed]
    # Megatron-Core's names of the files in it depend on the corpus's path.
    prints = [found for name, found in inputs.fingerprints.items() if name.startswith("corpus")]
    data: list[object] = [*prints, *map(str, config.data.corpora), config.data.blend]
    if config.phases:  # of which the last may not be whole batches of the first's size
        data += [config.train.train_tokens]
        data += [phase.model_dump(mode="json") for phase in config.phases.values()]
    data += [dict(inputs.seen)] if inputs.seen else []
    return run_folder / INDEX_CACHE / hash_json([*data, *budget])[:16]


def problem_of_cache(cache: Path) -> str:
    """Why the index in `cache` must not be read, or an empty string; Megatron-Core would run its pickles."""
    try:
        manifest = load_manifest(cache, INDEX)
        verify_hashes(cache, manifest)
        for path in cache.glob("*.npy"):
            if path.name not in manifest.outputs:
                return f"{path}: not in the manifest"
            open_array(path)
    except (ManifestError, DataError) as error:
        return str(error)
    return ""


def build_blends(inputs: Inputs, cache: Path) -> list[BlendedDataset]:
    """Build Megatron-Core's blend of each phase, the index read from `cache` or written there.

    A phase reads on in each pool where those before it, and the runs that this one continues, have stopped.
    With one sequence length no text comes twice in a pass over the pool; another one cuts the pool into
    other samples, in another order.
    """
    seen, needed = Counter(inputs.seen), Counter[tuple[str, int]]()  # samples of each pool, by their length
    parts = [(phase.config.data.shares(), phase.config.train) for phase in phases_of(inputs.config)]
    starts: list[list[int]] = []
    for shares, train in parts:
        # Samples of each pool by Megatron-Core's blend itself: counts from the shares alone can leave a pool
        # a sample short, which is an index error late in the run (Megatron-LM, issue 705).
        size, length, weights = train.train_samples, train.seq_length, [*shares.values()]
        pool_of, sample_of = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
        helpers.build_blending_indices(pool_of, sample_of, weights, len(weights), size, False)
        starts.append([seen[pool] // length for pool in shares])
        for pool, count in zip(shares, np.bincount(pool_of, minlength=len(weights)).tolist(), strict=True):
            needed[pool, length] = max(needed[pool, length], seen[pool] // length + count)
            seen[pool] += count * length
    pools, blends = {key: _pool(inputs, *key, count, cache) for key, count in needed.items()}, []
    for (shares, train), first in zip(parts, starts, strict=True):
        read = [pools[pool, train.seq_length] for pool in shares]
        blends.append(BlendedDataset(read, [*shares.values()], train.train_samples, read[0].config))
        if any(first):
            offsets = np.take(first, blends[-1].dataset_index)
            blends[-1].dataset_sample_index = blends[-1].dataset_sample_index + offsets
    return blends


def _pool(inputs: Inputs, pool: str, length: int, samples: int, cache: Path) -> GPTDataset:
    """A pool cut into samples of `length`, in the order of the run's seed."""
    # All that GPTDataset needs of a tokenizer; no token is padding, so none is masked by its id.
    identifiers = {"eod": inputs.eos_id}
    tokenizer = SimpleNamespace(pad=-1, vocab_size=None, eod=inputs.eos_id, unique_identifiers=identifiers)
    no = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "create_attention_mask")
    prefix = dataset_prefix(inputs.config, pool, "train")
    settings = GPTDatasetConfig(
        random_seed=inputs.config.seed,
        sequence_length=length,
        path_to_cache=str(cache),
        blend=([prefix], None),
        split="1,0,0",
        tokenizer=tokenizer,
        **dict.fromkeys(no, False),
    )
    indexed = IndexedDataset(prefix, mmap=True)
    documents = np.arange(len(indexed.sequence_lengths), dtype=np.int32)
    return GPTDataset(indexed, prefix, documents, samples, Split.train, settings)


class SourceCounter:
    """Counts the tokens of each pool, or of "sft", up to a step, from where it was last called."""

    def __init__(self, phases: Sequence[Phase], datasets: Sequence[TrainDataset]) -> None:
        self._parts, self._step, self._counts = [*zip(phases, datasets, strict=True)], 0, Counter[str]()

    def up_to(self, step: int) -> dict[str, int]:
        """Tokens seen by the end of `step`; no step may be before the last one given."""
        for phase, dataset in self._parts:
            pools, length = [*phase.config.data.blend] or ["sft"], phase.config.train.seq_length
            first, last = (min(max(at, phase.first_step), phase.last_step) for at in (self._step, step))
            seen = slice(*(phase.samples(at) - phase.first_sample for at in (first, last)))
            counts = np.bincount(dataset.dataset_index[seen], minlength=len(pools)) * length
            self._counts.update(dict(zip(pools, counts.tolist(), strict=True)))
        self._step = step
        return dict(self._counts)
