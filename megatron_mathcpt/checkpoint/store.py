"""Save and load a training state by Megatron-Core's dist_checkpointing, in a layout-free form.

Save: every rank writes and hashes its own files, rank 0 writes the manifest last and renames the folder.
Load: the manifest's checksums are compared before any deserialiser sees a byte; a damaged checkpoint is
named and the next older one taken.
"""

import shutil
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from megatron_mathcpt.checkpoint import folder as folders
from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.manifest import (
    Manifest,
    OutputFile,
    describe_file,
    hash_file,
    write_manifest,
)
from megatron_mathcpt.model.weights import keep_precise
from megatron_mathcpt.parallel import Layout

logger = get_logger(__name__)
_EXTRA = "_extra_state"


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint's manifest says beside its files: resolved config, inputs, and how far the run is."""

    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, Any]


class _InProcessSave(TorchDistSaveShardedStrategy):
    """Writes from the training process; Megatron-Core's own save forks writers, some 2 s for each save."""

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        """Write this rank's shards and, on rank 0, the index of all."""
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        save_distributed(
            mcore_to_pyt_state_dict(state, False),
            storage_writer=FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


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


def save_checkpoint(
    run_folder: Path,
    model: list[Any],
    optimizer: Any,
    record: CheckpointRecord,
    layout: Layout,
    retention: folders.Retention,
) -> Path:
    """Save the state after step `record.counts["step"]`, remove what need not stay; all ranks call it."""
    path = folders.checkpoint_path(run_folder, record.counts["step"])
    if layout.is_writer:
        folders.begin(path)
    dist.barrier()
    writing = folders.hidden_path(path)
    state = sharded_state(model, optimizer)
    try:
        dist_checkpointing.save(state, str(writing), _InProcessSave("torch_dist", 1))
    except (CheckpointException, OSError) as error:
        free = shutil.disk_usage(writing).free
        raise CheckpointError(
            f"{path}: cannot be written ({_cause(error)}; {free:,} bytes free there); the checkpoints "
            "before it are whole, make room or choose another folder and start again"
        ) from error
    outputs = _describe_files(writing, layout)
    if layout.is_writer:
        write_manifest(
            writing,
            "checkpoint",
            inputs=record.inputs,
            counts=record.counts,
            config=record.config,
            outputs=outputs,
        )
        folders.seal(writing)
        folders.commit(path)
    retention.verified.add(path.name)  # its bytes were read again for the checksums
    prune_verified(run_folder, retention, layout)
    return path


def prune_verified(run_folder: Path, retention: folders.Retention, layout: Layout) -> None:
    """Remove old checkpoints once newer ones are verified, which all ranks do together."""
    listed: list[Any] = [folders.checkpoint_paths(run_folder) if layout.is_writer else None]
    dist.broadcast_object_list(listed, src=0)
    (paths,) = listed
    whole = 0
    for path in paths if len(paths) > retention.keep else ():
        if path.name not in retention.verified:
            try:
                verify_checkpoint(path, layout)
            except CheckpointError:
                continue
            retention.verified.add(path.name)
        whole += 1
        if whole == retention.keep:
            break
    if layout.is_writer:
        folders.prune(paths, retention)
    dist.barrier()


def load_state(path: Path, model: list[Any], optimizer: Any | None) -> None:
    """Load weights, and the optimizer's state if one is given, from a checkpoint that was verified."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    loaded = dist_checkpointing.load(sharded_state(model, optimizer, stored=stored), str(path))
    for index, chunk in enumerate(model):
        missing, unexpected = chunk.load_state_dict(loaded[f"model{index}"], strict=False)
        assert not unexpected, unexpected
        assert all(key.endswith(_EXTRA) for key in missing), missing
        keep_precise(chunk, loaded[f"model{index}"])
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


def _cause(error: BaseException) -> str:
    """The operating system's words for what failed on some rank; torch hides them if a write is cut short."""
    failures = getattr(error, "failures", {})
    first = next((wrapped[0] for wrapped in failures.values()), error)
    return getattr(first, "strerror", None) or "a write was cut short"


def _describe_files(writing: Path, layout: Layout) -> dict[str, OutputFile]:
    """Size and hash of every file of the checkpoint; each rank reads the files it wrote."""
    mine = {}
    for path in sorted(writing.iterdir()):
        owner = int(path.name[2:].split("_")[0]) if path.name.startswith("__") else 0
        if owner == layout.rank:
            mine[path.name] = describe_file(path)
    everyone: list[dict[str, OutputFile]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: file for part in everyone for name, file in sorted(part.items())}
