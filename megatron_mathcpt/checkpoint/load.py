"""Loading: a run's newest checkpoint that verifies, a training state in any layout, or one tensor at a time.

The manifest's checksums are compared before any deserialiser sees a byte; a damaged checkpoint is named and
the next older one taken.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_mathcpt.checkpoint.optimizer_state import OptimizerState
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.model.weights import EMBEDDING, OUTPUT, requantize
from megatron_mathcpt.parallel import Layout

logger = get_logger(__name__)
_EXTRA = "_extra_state"


def newest_verified(run_folder: Path, layout: Layout) -> Path | None:
    """The newest checkpoint to go on from whose files verify; None if the run has none, else an error."""
    paths = folders.checkpoint_paths(run_folder)
    for path in paths:
        if _holds_all(path, layout):
            return path
    if paths:
        raise CheckpointError(
            f"{run_folder / folders.FOLDER}: no checkpoint verifies that holds more than weights; restore "
            "one or delete all"
        )
    return None


def _holds_all(path: Path, layout: Layout) -> bool:
    """Whether a run can go on from `path`: its files verify, and they are more than the weights."""
    try:
        return not folders.is_weights_only(verify_checkpoint(path, layout))
    except CheckpointError as error:
        if layout.is_writer:
            logger.warning("%s; passed over for an older checkpoint", error)
        return False


def verify_checkpoint(path: Path, layout: Layout, *, optimizer: bool = True) -> Manifest:
    """The manifest of `path`, each rank verifying a share of the files (of weights, without `optimizer`)."""
    problem = ""
    try:
        manifest = folders.load_sealed(path)
        outputs = manifest.outputs if optimizer else manifest.without_optimizer()
        for name in sorted(outputs)[layout.rank :: dist.get_world_size()]:
            if not problem and hash_file(path / name) != outputs[name].sha256:
                problem = f"{path / name}: checksum differs from the manifest"
    except ManifestError as error:
        problem = str(error)
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if first := next(filter(None, problems), ""):
        raise CheckpointError(first)
    return manifest


def verify_kept(run_folder: Path, retention: folders.Retention, layout: Layout) -> None:
    """Verify what is to stay beside a new checkpoint, so that older ones may go; all ranks together."""
    listed: list[Any] = [folders.checkpoint_paths(run_folder) if layout.is_writer else None]
    dist.broadcast_object_list(listed, src=0)
    whole = 1
    for path in listed[0] if len(listed[0]) >= retention.keep else ():
        if whole < retention.keep and (path.name in retention.verified or _holds_all(path, layout)):
            retention.verified.add(path.name)
            whole += 1


def load_state(path: Path, model: list[Any], optimizer: Any | None, layout: Layout) -> None:
    """Load weights, and the optimizer's state if one is given, from a checkpoint that was verified.

    Each rank reads its share; weights that others need too go round. Raises `CheckpointError` if the
    optimizer's state is not there in a form that every layout can load, or all in one that only newer
    versions of Megatron-Core read.
    """
    if hasattr(CheckpointingConfig, "common_backend") and not (path / COMMON_STATE_FNAME).is_file():
        raise CheckpointError(
            f"{path}: has no {COMMON_STATE_FNAME}, so a newer Megatron-Core wrote it (0.19 does), which this "
            "one cannot read; go on with that one"
        )
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    state = sharded_model(model, stored)
    if optimizer is not None:
        held = OptimizerState(optimizer, state, loading=True)
        _check_stored(path, stored, held)
        state["optimizer"] = held.sharded
    # Megatron-Core 0.19 would read into FP8 itself and lose what `keep_precise` needs.
    force_all_tensors_to_non_fp8(state)
    share = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), layout.groups.dp_cp)
    loaded = dist_checkpointing.load(state, str(path), share)
    for index, chunk in enumerate(model):
        missing, unexpected = chunk.load_state_dict(loaded[f"model{index}"], strict=False)
        assert not unexpected, unexpected
        assert all(key.endswith(_EXTRA) for key in missing), missing
        requantize(chunk, loaded[f"model{index}"])
    if optimizer is not None:
        held.load(loaded["optimizer"])


def sharded_model(model: list[Any], stored: Container[str] | None = None) -> dict[str, Any]:
    """Model chunks as Megatron-Core's sharded tensors, resharded on load across any layout.

    Layers have an extra state too: Transformer Engine's FP8 scales, saved with a model in FP8. Layers that
    stay in bf16 there save theirs too, which is empty: Megatron-Core wants a key of all layers or of none.
    Asked for in loading are those `stored`, the keys of the checkpoint, has.
    """
    return {
        f"model{index}": {
            key: value
            for key, value in chunk.sharded_state_dict().items()
            if not key.endswith(_EXTRA)
            or (chunk.config.fp8 is not None if stored is None else value.unique_key in stored)
        }
        for index, chunk in enumerate(model)
    }


def _check_stored(path: Path, stored: Mapping[str, Any], held: OptimizerState) -> None:
    for part in nested_values(held.sharded):
        if not isinstance(part, ShardedTensor):
            continue
        if part.key not in stored:
            raise CheckpointError(
                f"{path}: no '{part.key}' in this checkpoint; it holds weights only, or the optimizer's "
                "state in Megatron-Core's dp_reshardable form, which fits just the layout that wrote it: "
                "load the weights only, or save it as fully_reshardable"
            )
        if (found := stored[part.key].properties.dtype) != part.dtype:
            raise CheckpointError(
                f"{path}: '{part.key}' is {found}, this optimizer has it in {part.dtype}; its precision must "
                "be that of the run that saved it, or load the weights only"
            )


class CheckpointWeights:
    """Source of Megatron-Core's tensors from a verified checkpoint, whatever layout wrote it."""

    def __init__(self, path: Path, shape: LlamaShape) -> None:
        self._path, self._shape = path, shape
        self._reader = FileSystemReader(path)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """The tensor `key`, vocabulary unpadded; layers lie along dimension 0 of what is stored."""
        stored = self._metadata.state_dict_metadata.get(key)
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointError(f"{self._path}: no tensor '{key}' in this checkpoint")
        first, rows = (0, stored.size[0]) if layer is None else (layer, 1)
        if key.endswith((EMBEDDING, OUTPUT)):
            assert self._shape.vocab_size is not None
            rows = self._shape.vocab_size
        offset, size = torch.Size([first, *[0] * len(stored.size[1:])]), torch.Size([rows, *stored.size[1:]])
        target = torch.empty(size, dtype=stored.properties.dtype)
        items = create_read_items_for_chunk_list(key, stored, [ChunkStorageMetadata(offset, size)])
        self._reader.read_data(LoadPlan(items), _IntoTensor(target)).wait()
        return target if layer is None else target[0]


class _IntoTensor(DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._target
