"""Write a Hugging Face folder's weights tensor by tensor, in files of at most 5 GB, and its settings.

Not by safetensors' `save_file`, which needs a whole file in memory. A file is 8 bytes of header length, a
JSON header with each tensor's byte range, the bytes (github.com/huggingface/safetensors, "Format").
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from megatron_mathcpt.checkpoint.huggingface import unpack
from megatron_mathcpt.checkpoint.side_files import write_settings
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import FINAL_NORM, hf_sizes, tensor_keys
from megatron_mathcpt.formats.files import BackgroundFsync, write_atomically
from megatron_mathcpt.formats.manifest import OutputFile, sync_and_describe
from megatron_mathcpt.formats.weight_files import INDEX, WEIGHTS
from megatron_mathcpt.model import weights as tensors

MAX_FILE_BYTES = 5 * 10**9  # of tensors in a file, as huggingface_hub's MAX_SHARD_SIZE
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class _Tensor(NamedTuple):
    name: str
    dtype: torch.dtype
    size: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class ExportOptions:
    """The `base`, whose settings are kept, and the type in which the tensors of a key are written."""

    base: Path | None = None
    trained: bool = True  # else the weights have the type that the base says
    dtype_of: Callable[[str], torch.dtype] | None = None  # None: that of the final norm for all


def write_hf_folder(
    source: tensors.WeightSource,
    shape: DecoderShape,
    folder: Path,
    *,
    eos_id: int | Sequence[int] | None,
    bos_id: int | None = None,
    options: ExportOptions = ExportOptions(),
) -> dict[str, OutputFile]:
    """Write weights and settings; return sizes and checksums of the weights' files."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in (*folder.glob("model*.safetensors"), folder / INDEX):  # of a killed export, or a link
        leftover.unlink(missing_ok=True)
    main = source.read(FINAL_NORM, None).dtype
    files = _plan_files(shape, options.dtype_of or (lambda _: main))
    outputs = _write_files(folder, files, source, shape)
    if len(files) > 1:
        of = {tensor.name: name for name, content in files.items() for tensor in content}
        total = sum(tensor.bytes for content in files.values() for tensor in content)
        index = {"metadata": {"total_size": total}, "weight_map": of}
        write_atomically(folder / INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
        outputs |= sync_and_describe(folder, [INDEX])
    ends = eos_id if isinstance(eos_id, Sequence) else () if eos_id is None else (eos_id,)
    dtype = str(main).removeprefix("torch.") if options.trained or options.base is None else None
    write_settings(folder, options.base, shape, dtype=dtype, bos_id=bos_id, eos_id=ends)
    return outputs


def _plan_files(shape: DecoderShape, dtype_of: Callable[[str], torch.dtype]) -> dict[str, list[_Tensor]]:
    """What each file has, in order; a tensor of more than `MAX_FILE_BYTES` has a file of its own."""
    files: list[list[_Tensor]] = [[]]
    for key, layer in tensor_keys(shape):
        for name, size in hf_sizes(shape, key, layer).items():
            dtype = dtype_of(key)
            tensor = _Tensor(name, dtype, size, math.prod(size) * dtype.itemsize)
            if files[-1] and sum(one.bytes for one in files[-1]) + tensor.bytes > MAX_FILE_BYTES:
                files.append([])
            files[-1].append(tensor)
    for content in files:  # as safetensors writes a file: so an export can have the very bytes of its base
        content.sort(key=lambda one: (-one.dtype.itemsize, one.dtype == torch.float16, one.name))
    if len(files) == 1:
        return {WEIGHTS: files[0]}
    return {f"model-{n:05d}-of-{len(files):05d}.safetensors": one for n, one in enumerate(files, 1)}


def _write_files(
    folder: Path, files: dict[str, list[_Tensor]], source: tensors.WeightSource, shape: DecoderShape
) -> dict[str, OutputFile]:
    """Write the tensors one by one, while threads read the next and hash the previous one."""
    names = [one.name for content in files.values() for one in content]
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as hasher:
        parts = _read_ahead(source, shape, names, reader)
        return {
            name: _write_file(folder / name, content, islice(parts, len(content)), hasher)
            for name, content in files.items()
        }


def _read_ahead(
    source: tensors.WeightSource, shape: DecoderShape, names: Sequence[str], reader: ThreadPoolExecutor
) -> Iterator[torch.Tensor]:
    """The tensors of `names`, read by the keys that pack them."""
    packed_in = {name: of for of in tensor_keys(shape) for name in hf_sizes(shape, *of)}
    order = [*dict.fromkeys(packed_in[name] for name in names)]
    following: Future[torch.Tensor] = reader.submit(source.read, *order[0])
    waiting, read = dict[str, torch.Tensor](), 0
    for name in names:
        if name not in waiting:
            (key, layer), whole, read = order[read], following.result(), read + 1
            if read < len(order):
                following = reader.submit(source.read, *order[read])
            waiting |= zip(hf_sizes(shape, key, layer), unpack(key, whole, shape), strict=True)
        yield waiting.pop(name)


def _write_file(
    path: Path, content: list[_Tensor], parts: Iterator[torch.Tensor], hasher: ThreadPoolExecutor
) -> OutputFile:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in content:
        begin, end = end, end + one.bytes
        known = {"dtype": _DTYPE_NAMES[one.dtype], "shape": one.size}
        header[one.name] = known | {"data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors must be aligned to 8 bytes
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with path.open("wb") as file:
        disk = BackgroundFsync(file)
        file.write(start)
        hashing = hasher.submit(digest.update, b"")
        for one, part in zip(content, parts, strict=True):
            data = part.to(one.dtype).contiguous().flatten().view(torch.uint8).numpy().data
            hashing.result()
            hashing = hasher.submit(digest.update, data)
            file.write(data)
            disk.wrote(data.nbytes)
        hashing.result()
        disk.finish()
    return OutputFile(bytes=len(start) + end, sha256=digest.hexdigest())
