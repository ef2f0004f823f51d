"""Hugging Face weights as a checkpoint that any layout loads, written one tensor at a time.

The files are those of Megatron-Core's torch_dist format, each layer's tensor one chunk of the stacked whole;
no process group and no model is needed, so a machine with little memory can convert a large one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_mathcpt.checkpoint.names import tensor_keys
from megatron_mathcpt.checkpoint.shard_writer import without_crc32
from megatron_mathcpt.config.shape import LlamaShape, padded_vocab_size
from megatron_mathcpt.model.weights import EMBEDDING, LAYERS, OUTPUT, WeightSource, tensor_sizes


@dataclass(frozen=True)
class _Piece:
    """One tensor of the source and its place in the stored whole."""

    key: str
    layer: int | None
    whole: torch.Size
    offset: torch.Size
    size: torch.Size

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, self.offset)


def write_weights(source: WeightSource, shape: LlamaShape, folder: Path) -> None:
    """Write every tensor of `source` into `folder`, which is there and empty; it is not synced yet."""
    pieces = {piece.index: piece for piece in _pieces(shape)}
    dtype = source.read("decoder.final_layernorm.weight", None).dtype
    items = [_item(piece, dtype) for piece in pieces.values()]
    writer = FileSystemWriter(folder, sync_files=False)
    writer.set_up_storage_writer(True)
    plans, metadata = create_default_global_save_plan([SavePlan(items)])
    (plan,) = writer.prepare_global_plan(plans)
    with without_crc32():
        results = writer.write_data(plan, _FromSource(source, pieces)).wait()
    writer.finish(metadata, [results])
    torch.save({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


def _pieces(shape: LlamaShape) -> Iterator[_Piece]:
    sizes = tensor_sizes(shape)
    for key, layer in tensor_keys(shape):
        size = torch.Size(sizes[key.removeprefix(LAYERS)])
        if key in (EMBEDDING, OUTPUT):
            assert shape.vocab_size is not None
            size = torch.Size((padded_vocab_size(shape.vocab_size), *size[1:]))
        if layer is None:
            yield _Piece(key, None, size, torch.Size([0] * len(size)), size)
        else:
            whole, offset = torch.Size((shape.num_layers, *size)), torch.Size((layer, *[0] * len(size)))
            yield _Piece(key, layer, whole, offset, torch.Size((1, *size)))


def _item(piece: _Piece, dtype: torch.dtype) -> WriteItem:
    chunk = ChunkStorageMetadata(offsets=piece.offset, sizes=piece.size)
    data = TensorWriteData(chunk=chunk, properties=TensorProperties(dtype=dtype), size=piece.whole)
    return WriteItem(index=piece.index, type=WriteItemType.SHARD, tensor_data=data)


class _FromSource(DefaultSavePlanner):
    """Reads each tensor when the writer asks for it."""

    def __init__(self, source: WeightSource, pieces: dict[MetadataIndex, _Piece]) -> None:
        super().__init__()
        self._source = source
        self._pieces = pieces

    def resolve_data(self, write_item: WriteItem) -> Any:
        piece = self._pieces[MetadataIndex(write_item.index.fqn, write_item.index.offset)]
        tensor = self._source.read(piece.key, piece.layer)
        missing = piece.size[-len(tensor.shape)] - len(tensor)
        if missing:
            tensor = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
        return tensor.reshape(piece.size)
