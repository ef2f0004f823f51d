"""Text files to one indexed dataset: a thread reads, the engine encodes on all cores, a thread writes.

Memory does not grow with the input but for 4 bytes a document, the lengths that the index needs.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import orjson

from megatron_mathcpt.data.engines import EngineName, Tokens, load_encoder
from megatron_mathcpt.data.reference import Literals
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import read_lines
from megatron_mathcpt.formats.indexed_dataset import DatasetWriter, Lengths, read_lengths, token_dtype

_DEPTH = 3  # blocks waiting between two threads
_SAMPLE = 64  # documents of the input on which a fast engine must agree with the reference
Item = TypeVar("Item")


def tokenize_files(
    files: Sequence[Path], field: str, tokenizer: Path, prefix: Path, literals: Literals, engine: EngineName
) -> dict[str, int | str]:
    """Tokenize the `field` of JSON lines into `<prefix>.bin` and `.idx`, each document closed by end of text.

    Returns documents, tokens, bytes of text, engine and vocabulary. Raises `DataError` naming file and line.
    """
    blocks = ahead(texts for file in files for texts in _read_texts(file, field))
    first = next(blocks, [])
    encoder, info = load_encoder(tokenizer, literals, engine, first[:_SAMPLE])
    writer = DatasetWriter(prefix, token_dtype(info.vocab_size))
    size = 0

    def encoded() -> Iterator[tuple[Tokens, Lengths]]:
        nonlocal size
        for texts in _chain(first, blocks):
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


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """`items`, made by another thread up to three ahead of their use; its exceptions are raised here."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(_DEPTH))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield cast(Item, item)


def _chain(first: list[str], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    if first:
        yield first
    yield from rest


def _read_texts(file: Path, field: str) -> Iterator[list[str]]:
    for number, lines in read_lines(file):
        texts = []
        for offset, line in enumerate(lines):
            if not line or line.isspace():
                continue
            try:
                texts.append(orjson.loads(line)[field])
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}:{number + offset}: no JSON object with '{field}' ({error})"
                ) from error
        if texts:
            yield texts
