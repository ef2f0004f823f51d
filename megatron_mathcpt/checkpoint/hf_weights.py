"""The weights of a Hugging Face folder as a source of Megatron-Core's tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_mathcpt.checkpoint.huggingface import pack
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.config.weight_map import check_weights, hf_sizes
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.model.weights import ExtendedWeights, WeightSource


class HuggingFaceWeights:
    """`WeightSource` of the weight files of a folder that count, packed on demand, each in its own type.

    Raises `CheckpointError` if they are not just the tensors of `shape` (formats/weight_files.py).
    """

    def __init__(self, folder: Path, shape: LlamaShape) -> None:
        self._shape, self._stored = shape, check_weights(folder, shape)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        parts = []
        for name in hf_sizes(self._shape, key, layer):
            with _opened(self._stored[name].file) as file:
                parts.append(file.get_tensor(name))
        return pack(key, parts, self._shape)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of weights; `CheckpointError` if it is cut or its header is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not read as safetensors ({error}); copy it again") from error


def hf_weights(folder: Path, new_rows: range) -> WeightSource:
    """The weights of a folder, with rows of tokens that its tokenizer lacks."""
    source = HuggingFaceWeights(folder, read_hf_shape(folder))
    return ExtendedWeights(source, new_rows) if new_rows else source
