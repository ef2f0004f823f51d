"""Text files to one indexed dataset: a thread reads, the engine encodes on all cores, a thread writes.

Memory does not grow with the input but for 4 bytes a document, the lengths that the index needs.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from megatron_mathcpt.data.tokenizer import EngineName, Literals, Tokens, load_encoder
from megatron_mathcpt.formats.files import read_texts
from megatron_mathcpt.formats.indexed_dataset import DatasetWriter, Lengths, read_lengths, token_dtype

_DEPTH = 3  # blocks waiting between two threads
_SAMPLE = 64  # documents of the input on which a fast engine must agree with the reference
Block = TypeVar("Block")


def tokenize_files(
    files: Sequence[Path], field: str, tokenizer: Path, prefix: Path, literals: Literals, engine: EngineName
) -> dict[str, int | str]:
    """Tokenize the `field` of JSON lines into `<prefix>.bin` and `.idx`, each document closed by end of text.

    Returns documents, tokens, characters of text, engine and vocabulary. Raises `DataError` naming file and
    line.
    """
    blocks = ahead(texts for file in files for texts in read_texts(file, field))
    first = next(blocks, [])
    encoder, info = load_encoder(tokenizer, literals, engine, first[:_SAMPLE])
    writer = DatasetWriter(prefix, token_dtype(info.vocab_size))
    size = 0

    def encoded() -> Iterator[tuple[Tokens, Lengths]]:
        nonlocal size
        for texts in chain([first] if first else [], blocks):
            size += sum(map(len, texts))
            yield encoder.encode(texts)

    for part in ahead(encoded()):
        writer.write(*close_documents(*part, info.eos_id))
    documents, tokens = writer.close()
    read_lengths(prefix)
    return {
        "documents": documents,
        "tokens": tokens,
        "characters": size,
        "engine": encoder.name,
        "vocab_size": info.vocab_size,
        "eos_id": info.eos_id,
        "tokenizer_sha256": info.sha256,
    }


def close_documents(tokens: Tokens, lengths: Lengths, eos_id: int) -> tuple[Tokens, Lengths]:
    """Put `eos_id` after each document."""
    closed = lengths + 1
    ends = np.cumsum(closed, dtype=np.int64) - 1
    inside = np.ones(len(tokens) + len(lengths), np.bool_)
    inside[ends] = False
    result = np.empty(len(inside), np.int32)
    result[inside] = tokens
    result[ends] = eos_id
    return result, closed


def ahead(blocks: Iterable[Block]) -> Iterator[Block]:
    """`blocks`, made by another thread up to three ahead of their use; its exceptions are raised here."""
    iterator, end = iter(blocks), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(_DEPTH))
        while (block := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield cast(Block, block)
