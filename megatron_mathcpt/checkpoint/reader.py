"""Whole tensors out of a checkpoint, one at a time and without any process group."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.model.weights import EMBEDDING, OUTPUT


class CheckpointWeights:
    """Source of Megatron-Core's tensors from a verified checkpoint, whatever layout wrote it."""

    def __init__(self, path: Path, shape: LlamaShape) -> None:
        self._path = path
        self._shape = shape
        self._reader = FileSystemReader(path)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """The tensor `key`, vocabulary unpadded; layers lie along dimension 0 of what is stored."""
        stored = self._metadata.state_dict_metadata.get(key)
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointError(f"{self._path}: no tensor '{key}' in this checkpoint")
        size = list(stored.size)
        if key.endswith((EMBEDDING, OUTPUT)):
            assert self._shape.vocab_size is not None
            size[0] = self._shape.vocab_size
        offset = [0] * len(size)
        if layer is not None:
            offset[0], size[0] = layer, 1
        target = torch.empty(size, dtype=stored.properties.dtype)
        wanted = ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(size))
        items = create_read_items_for_chunk_list(key, stored, [wanted])
        self._reader.read_data(LoadPlan(items), _IntoTensor(target)).wait()
        return target if layer is None else target[0]


class _IntoTensor(LoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        part = self._target
        for axis, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(axis, offset, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise AssertionError(f"{read_item} is no tensor")

    # torch's protocol asks for these; `read_data` above is handed a finished plan and calls none of them.
    def set_up_planner(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the plan is made already")

    def create_local_plan(self) -> LoadPlan:
        raise AssertionError("the plan is made already")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise AssertionError("the plan is made already")

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise AssertionError("the plan is made already")
