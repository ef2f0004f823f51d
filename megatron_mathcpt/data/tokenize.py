"""Texts to one flat array of token ids, every document closed by the end-of-text token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.indexed_dataset import Lengths
from megatron_mathcpt.data.tokenizer import TokenizerInfo, load_tokenizer

Tokens = npt.NDArray[np.int32]


class Encoder(Protocol):
    """Anything that turns texts into one flat array of ids and the length of each text in tokens."""

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        ...


class ReferenceEncoder:
    """The Hugging Face `tokenizers` library, which says what is right."""

    def __init__(self, folder: Path, special_literals: str) -> None:
        self._tokenizer, self.info = load_tokenizer(folder)
        self._tokenizer.encode_special_tokens = special_literals == "text"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        flat = np.empty(int(lengths.sum()), np.int32)
        position = 0
        for ids in encoded:
            flat[position : position + len(ids)] = ids
            position += len(ids)
        return flat, lengths


def load_encoder(folder: Path, special_literals: str) -> tuple[Encoder, TokenizerInfo]:
    """The encoder for the tokenizer in `folder`."""
    encoder = ReferenceEncoder(folder, special_literals)
    return encoder, encoder.info


def close_documents(tokens: Tokens, lengths: Lengths, eos_id: int) -> tuple[Tokens, Lengths]:
    """Put `eos_id` after each document."""
    closed = lengths + 1
    ends = np.cumsum(closed) - 1
    inside = np.ones(len(tokens) + len(lengths), np.bool_)
    inside[ends] = False
    result = np.empty(len(inside), np.int32)
    result[inside] = tokens
    result[ends] = eos_id
    return result, closed
