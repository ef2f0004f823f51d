"""The weights of a Hugging Face folder as a source of Megatron-Core's tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_mathcpt.checkpoint.huggingface import pack
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import check_weights, hf_sizes
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.model.weights import ExtendedWeights, WeightSource

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class HuggingFaceWeights:
    """`WeightSource` of the weight files of a folder that count, packed on demand, each in its own type.

    Raises `CheckpointError` if they are not just the tensors of `shape` (formats/weight_files.py).
    """

    def __init__(self, folder: Path, shape: DecoderShape) -> None:
        self._shape, self._stored = shape, check_weights(folder, shape)
        if shape.share_embeddings_and_output_weights and _HEAD in self._stored:
            # By their bits; transformers would keep both.
            one, other = (self._tensor(name).contiguous().view(torch.uint8) for name in (_HEAD, _EMBEDDING))
            if not torch.equal(one, other):
                what = f"{_HEAD} differs from {_EMBEDDING}, which config.json ties"
                remedy = "set tie_word_embeddings to false to keep both"
                raise CheckpointError(f"{self._stored[_HEAD].file}: {what}; {remedy}")

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        names = hf_sizes(self._shape, key, layer)
        return pack(key, [self._tensor(name) for name in names], self._shape)

    def _tensor(self, name: str) -> torch.Tensor:
        with _opened(self._stored[name].file) as file:
            found: torch.Tensor = file.get_tensor(name)
        return found


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
