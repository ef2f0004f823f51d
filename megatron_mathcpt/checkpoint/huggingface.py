"""Hugging Face Llama folders: weights read and written tensor by tensor, never the whole model in memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open

from megatron_mathcpt.checkpoint.names import hf_names, pack, tensor_keys, unpack
from megatron_mathcpt.config.shape import LlamaShape, hf_config
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.files import EarlySync, write_atomically
from megatron_mathcpt.formats.manifest import OutputFile
from megatron_mathcpt.model.weights import WeightSource, tensor_sizes

WEIGHTS = "model.safetensors"
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class HuggingFaceWeights:
    """Source of Megatron-Core's tensors from `*.safetensors`, packed as they are asked for."""

    def __init__(self, folder: Path, shape: LlamaShape) -> None:
        self._folder = folder
        self._shape = shape
        self._file_of: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._file_of |= dict.fromkeys(file.keys(), path)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """Megatron-Core's tensor `key`; `CheckpointError` if a part is missing or of another size."""
        return pack(key, [self._part(name) for name in hf_names(key, layer)], self._shape)

    def _part(self, name: str) -> torch.Tensor:
        path = self._file_of.get(name)
        if path is None:
            raise CheckpointError(f"{self._folder}: no tensor '{name}' in its *.safetensors")
        with safe_open(path, framework="pt") as file:
            return torch.as_tensor(file.get_tensor(name))


def write_hf_folder(
    source: WeightSource, shape: LlamaShape, folder: Path, *, eos_id: int | None
) -> dict[str, OutputFile]:
    """Write `config.json` and `model.safetensors` for transformers; a tensor is read while one is written.

    Returns the weights' size and checksum, taken from memory, so that the file need not be read again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = source.read("decoder.final_layernorm.weight", None).dtype
    sizes = {name: size for name, size, _, _ in _parts(shape)}
    keys = list(tensor_keys(shape))
    wholes = _ahead(source.read(key, layer) for key, layer in keys)
    tensors = (
        part.to(dtype)
        for (key, _), whole in zip(keys, wholes, strict=True)
        for part in unpack(key, whole, shape)
    )
    weights = write_safetensors(folder / WEIGHTS, sizes, dtype, tensors)
    config = hf_config(shape, dtype=str(dtype).removeprefix("torch."), bos_id=None, eos_id=eos_id)
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return {WEIGHTS: weights}


def _ahead(tensors: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same tensors, each read in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(next, tensors, None)
        while (tensor := coming.result()) is not None:
            coming = beside.submit(next, tensors, None)
            yield tensor


def _parts(shape: LlamaShape) -> Iterator[tuple[str, tuple[int, ...], str, int | None]]:
    """Name and size of every Hugging Face tensor, with the key and layer it comes from."""
    whole = tensor_sizes(shape)
    for key, layer in tensor_keys(shape):
        size = whole[key.removeprefix("decoder.layers.")]
        parts = unpack(key, torch.empty(size, device="meta"), shape)
        for name, part in zip(hf_names(key, layer), parts, strict=True):
            yield name, tuple(part.shape), key, layer


def write_safetensors(
    path: Path, sizes: dict[str, tuple[int, ...]], dtype: torch.dtype, tensors: Iterable[torch.Tensor]
) -> OutputFile:
    """Write a safetensors file from a stream of tensors in the order of `sizes`; its size and checksum.

    Layout: 8 bytes header length, JSON header with the byte range of each tensor, then the bytes
    (github.com/huggingface/safetensors, "Format").
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in sizes.items():
        begin, end = end, end + torch.Size(size).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with path.open("wb") as file, ThreadPoolExecutor(1) as beside:
        disk = EarlySync(file)
        file.write(start)
        hashing = beside.submit(digest.update, b"")
        for (name, size), tensor in zip(sizes.items(), tensors, strict=True):
            assert tuple(tensor.shape) == size, name
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
            hashing.result()
            hashing = beside.submit(digest.update, data)
            file.write(data)
            disk.wrote(data.nbytes)
        hashing.result()
        disk.finish()
    return OutputFile(bytes=len(start) + end, sha256=digest.hexdigest())
