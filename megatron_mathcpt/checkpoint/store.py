"""A training state in Megatron-Core's layout-free form, and the checkpoints of a run that verify.

The manifest's checksums are compared before any deserialiser sees a byte; a damaged checkpoint is named and
the next older one taken. Writing is saver.py's.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_mathcpt.checkpoint import folder as folders
from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.hashing import hash_file
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.manifest import Manifest
from megatron_mathcpt.model.weights import requantize
from megatron_mathcpt.parallel import Layout

logger = get_logger(__name__)
_EXTRA = "_extra_state"


def sharded_state(
    model: list[Any], optimizer: Any | None, *, stored: Container[str] | None = None
) -> dict[str, Any]:
    """Model chunks and optimizer as Megatron-Core's sharded tensors, resharded on load across any layout.

    Layers have an extra state too: Transformer Engine's FP8 scales. Saved are those that hold something;
    asked for in loading are those `stored`, the keys of the checkpoint, has.
    """
    state = {
        f"model{index}": {
            key: value
            for key, value in chunk.sharded_state_dict().items()
            if not key.endswith(_EXTRA) or _holds_something(value, stored)
        }
        for index, chunk in enumerate(model)
    }
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(
            dict(state),
            is_loading=stored is not None,
            metadata={"distrib_optim_sharding_type": "fully_reshardable"},
        )
    return state


def _holds_something(extra: ShardedObject, stored: Container[str] | None) -> bool:
    if stored is not None:
        return extra.unique_key in stored
    return extra.data is not None and not (isinstance(extra.data, torch.Tensor) and not extra.data.numel())


def verify_kept(run_folder: Path, retention: folders.Retention, layout: Layout) -> None:
    """Verify what is to stay beside a new checkpoint, so that older ones may go; all ranks together."""
    listed: list[Any] = [folders.checkpoint_paths(run_folder) if layout.is_writer else None]
    dist.broadcast_object_list(listed, src=0)
    (paths,) = listed
    whole = 1
    for path in paths if len(paths) >= retention.keep else ():
        if whole == retention.keep:
            break
        if path.name not in retention.verified:
            try:
                verify_checkpoint(path, layout)
            except CheckpointError:
                continue
            retention.verified.add(path.name)
        whole += 1


def load_state(path: Path, model: list[Any], optimizer: Any | None) -> None:
    """Load weights, and the optimizer's state if one is given, from a checkpoint that was verified."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    loaded = dist_checkpointing.load(sharded_state(model, optimizer, stored=stored), str(path))
    for index, chunk in enumerate(model):
        missing, unexpected = chunk.load_state_dict(loaded[f"model{index}"], strict=False)
        assert not unexpected, unexpected
        assert all(key.endswith(_EXTRA) for key in missing), missing
        requantize(chunk, loaded[f"model{index}"])
    if optimizer is not None:
        optimizer.load_state_dict(loaded["optimizer"])


def verify_checkpoint(path: Path, layout: Layout) -> Manifest:
    """The manifest of `path`, all files' checksums compared; each rank reads its share of the files."""
    problem = ""
    try:
        manifest = folders.load_sealed(path)
        for name in sorted(manifest.outputs)[layout.rank :: dist.get_world_size()]:
            if hash_file(path / name) != manifest.outputs[name].sha256:
                problem = problem or f"{path / name}: checksum differs from the manifest"
    except ManifestError as error:
        problem = str(error)
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if first := next(filter(None, problems), ""):
        raise CheckpointError(first)
    return manifest


def newest_verified(run_folder: Path, layout: Layout) -> Path | None:
    """The newest checkpoint whose files verify; None if the run has none, an error if all are damaged."""
    paths = folders.checkpoint_paths(run_folder)
    for path in paths:
        try:
            verify_checkpoint(path, layout)
        except CheckpointError as error:
            if layout.is_writer:
                logger.warning("%s; trying the checkpoint before it", error)
            continue
        return path
    if paths:
        raise CheckpointError(
            f"{run_folder / folders.FOLDER}: no checkpoint verifies; restore one or delete all"
        )
    return None
