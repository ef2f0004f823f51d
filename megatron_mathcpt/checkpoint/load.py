"""Load a run's newest checkpoint that verifies, a training state in any layout, or one tensor at a time.

Checksums are compared before any deserialiser sees a byte: torch loads a flipped bit without an error. Who
made a checkpoint can have chosen its checksums too, so its pickles are read by `safe_pickle` alone. A damaged
checkpoint is logged, and the next older one used.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_mathcpt.checkpoint import safe_pickle
from megatron_mathcpt.checkpoint.optimizer_state import OptimizerState
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import EMBEDDING, OUTPUT
from megatron_mathcpt.errors import CheckpointError, ManifestError, one_line
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.model.language_model import LanguageModel
from megatron_mathcpt.model.weights import requantize
from megatron_mathcpt.parallel import Layout

logger = get_logger(__name__)


def newest_verified(run_folder: Path, layout: Layout) -> Path | None:
    """Find the newest checkpoint to resume from; None if the run has none, an error if none verifies."""
    paths = folders.checkpoint_paths(run_folder)
    found = next((path for path in paths if _is_resumable(path, layout)), None)
    if paths and found is None:
        problem = "no checkpoint verifies that has more than weights; restore one or delete all"
        raise CheckpointError(f"{run_folder / folders.FOLDER}: {problem}")
    return found


def _is_resumable(path: Path, layout: Layout) -> bool:
    try:
        return not folders.is_weights_only(verify_checkpoint(path, layout))
    except CheckpointError as error:
        if layout.is_writer:
            logger.warning("%s; trying an older checkpoint", error)
        return False


def verify_checkpoint(path: Path, layout: Layout, *, optimizer: bool = True) -> Manifest:
    """Verify the files of `path`, a share on each rank; raises `CheckpointError` on all if any is damaged."""
    problem = ""
    try:
        manifest = folders.checkpoint_manifest(path)
        outputs = manifest.outputs if optimizer else manifest.without_optimizer()
        for name in sorted(outputs)[layout.rank :: dist.get_world_size()]:
            if not problem and hash_file(path / name) != outputs[name].sha256:
                problem = f"{path / name}: checksum differs from the manifest"
    except (ManifestError, OSError) as error:
        problem = str(error)
    _raise_on_all(problem)
    return manifest


def _raise_on_all(problem: str) -> None:
    """Raise the `CheckpointError` that any rank has, on all: else the others would wait for it forever."""
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if first := next(filter(None, problems), ""):
        raise CheckpointError(first)


def verify_kept(run_folder: Path, retention: folders.Retention, layout: Layout) -> None:
    """Verify the checkpoints to keep with a new one, before older ones are removed; all ranks together."""
    # Rank 0's list for all: each checkpoint in it costs a collective, which all ranks must enter.
    listed = [folders.checkpoint_paths(run_folder) if layout.is_writer else []]
    dist.broadcast_object_list(listed, src=0)
    verified = 1  # the new one, just written
    for path in listed[0] if len(listed[0]) >= retention.keep else ():
        if verified < retention.keep and (path.name in retention.verified or _is_resumable(path, layout)):
            retention.verified.add(path.name)
            verified += 1


def load_state(
    path: Path, model: list[LanguageModel], optimizer: MegatronOptimizer | None, layout: Layout
) -> None:
    """Load weights, and the optimizer's state if one is given, from a verified checkpoint of any layout."""
    if hasattr(CheckpointingConfig, "common_backend") and not (path / COMMON_STATE_FNAME).is_file():
        problem = f"has no {COMMON_STATE_FNAME}, so a newer Megatron-Core wrote it (0.19 does)"
        raise CheckpointError(f"{path}: {problem}, which this one cannot read; install that one")
    reader = safe_pickle.CheckpointReader(path)
    stored = reader.index.state_dict_metadata
    wanted = sharded_model(model, stored)
    if optimizer is not None:
        parts = OptimizerState(optimizer, wanted, loading=True)
        _check_stored(path, stored, parts)
        wanted["optimizer"] = parts.sharded
    # 0.19 would load into FP8 parameters itself, and the precise values, for `requantize`, would be lost.
    force_all_tensors_to_non_fp8(wanted)
    # Each replica reads a part, and they exchange the parts: not every rank reads the whole checkpoint.
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), layout.groups.dp_cp)
    try:
        with safe_pickle.reading_by(reader):
            loaded = dist_checkpointing.load(wanted, str(path), strategy)
    except (CheckpointException, CheckpointingException) as error:  # the first wraps those of other ranks
        first = next((wrapped[0] for wrapped in getattr(error, "failures", {}).values()), error)
        raise CheckpointError(f"{path}: does not load ({one_line(str(first))}); use another") from error
    states = [loaded[f"model{index}"] for index in range(len(model))]
    _raise_on_all(safe_pickle.problem_of_extra_states(path, states))
    for chunk, state in zip(model, states, strict=True):
        missing, unexpected = chunk.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(key.endswith(safe_pickle.EXTRA) for key in missing), missing
        requantize(chunk, state)
    if optimizer is not None:
        parts.load(loaded["optimizer"])


def sharded_model(model: Iterable[LanguageModel], stored: Container[str] | None = None) -> ShardedStateDict:
    """Describe model chunks as sharded tensors, to save them, or to load what a checkpoint has `stored`."""
    # FP8 scales are saved if the model is in FP8, the empty ones of its bf16 layers too, since Megatron-Core
    # wants a key in all layers or in none. When loading, they are read if the checkpoint has them.
    return {
        f"model{index}": {
            key: value
            for key, value in chunk.sharded_state_dict().items()
            if not key.endswith(safe_pickle.EXTRA)
            or (chunk.config.fp8 is not None if stored is None else value.unique_key in stored)
        }
        for index, chunk in enumerate(model)
    }


def _check_stored(path: Path, stored: Mapping[str, object], optimizer: OptimizerState) -> None:
    for part in nested_values(optimizer.sharded):
        if not isinstance(part, ShardedTensor):
            continue
        found = stored.get(part.key)
        if not isinstance(found, TensorStorageMetadata):
            form = "in Megatron-Core's dp_reshardable form, which fits only the layout that wrote it"
            has = f"it has weights only, or the optimizer's state {form}"
            remedy = "load the weights only, or save it as fully_reshardable"
            raise CheckpointError(f"{path}: no '{part.key}' in this checkpoint; {has}: {remedy}")
        if found.properties.dtype != part.dtype:  # torch would convert it silently
            problem = f"'{part.key}' is {found.properties.dtype}, this optimizer has it in {part.dtype}"
            remedy = "use the precision of the run that saved it, or load the weights only"
            raise CheckpointError(f"{path}: {problem}; {remedy}")


class CheckpointWeights:
    """`WeightSource` of a verified checkpoint, whatever layout wrote it."""

    def __init__(self, path: Path, shape: DecoderShape, prefix: str = "") -> None:
        self._path, self._shape, self._prefix = path, shape, prefix
        self._reader = safe_pickle.CheckpointReader(path)
        self._reader.set_up_storage_reader(self._reader.index, is_coordinator=True)

    def dtype(self, key: str) -> torch.dtype:
        return self._stored(key).properties.dtype

    def _stored(self, key: str) -> TensorStorageMetadata:
        stored = self._reader.index.state_dict_metadata.get(self._prefix + key)
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointError(f"{self._path}: no tensor '{key}' in this checkpoint")
        return stored

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        stored = self._stored(key)
        first, rows = (0, stored.size[0]) if layer is None else (layer, 1)  # a layer is a row of the stored
        if key.endswith((EMBEDDING, OUTPUT)):
            rows = self._shape.vocab_size or rows  # without the padding
        offset, size = torch.Size([first, *[0] * len(stored.size[1:])]), torch.Size([rows, *stored.size[1:]])
        with safe_pickle.refusing(f"{self._path}: '{key}'"):
            target = torch.empty(size, dtype=stored.properties.dtype)
            chunks = [ChunkStorageMetadata(offset, size)]
            items = create_read_items_for_chunk_list(self._prefix + key, stored, chunks)
            if sum(item.lengths.numel() for item in items) != size.numel():
                raise ValueError(f"its stored parts are not the whole of {[*size]} from {[*offset]}")
            self._reader.read_data(LoadPlan(items), _IntoTensor(target)).wait()
        return target if layer is None else target[0]


class _IntoTensor(DefaultLoadPlanner):
    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._target
