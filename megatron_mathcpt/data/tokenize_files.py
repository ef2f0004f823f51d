"""Tokenize files into indexed datasets without a corpus build, as Megatron-LM's preprocess_data does.

A text of no tokens makes no document: its end token alone would teach nothing. Megatron-LM's script writes
such a document without a sequence, which its datasets, that count sequences, never see: the same tokens, but
another index. Where documents begin with a begin token, an empty one is that and the end, there and here.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_mathcpt.data import tokenizer as engines
from megatron_mathcpt.data.texts import list_inputs, read_texts
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.indexed_dataset import dataset_writer, token_dtype
from megatron_mathcpt.formats.tokenizer_folder import Bos, TokenizerCounts, write_tokenizer
from megatron_mathcpt.log import get_logger, progress, reporting

_log = get_logger(__name__)


@dataclass(frozen=True)
class Tokenization:
    tokenizer: Path
    bos: Bos = "tokenizer"
    end: bool = True  # with an end token
    literals: engines.Literals = "text"
    engine: engines.EngineName = "auto"


@dataclass(frozen=True)
class Tokenized:
    read: int  # records
    documents: int
    tokens: int
    empty: int  # texts of no tokens
    engine: str
    tokenizer: TokenizerCounts

    def __str__(self) -> str:
        info, empty = self.tokenizer, f", {self.empty:,} of them empty" if self.empty else ""
        begin = "" if info.bos_id is None else f", begun by {info.bos_id}"
        written = f"{self.documents:,} documents of {self.tokens:,} tokens, from {self.read:,} texts{empty}"
        return f"{written}; vocabulary {info.vocab_size:,}{begin}, encoded by {self.engine}"


def tokenize_files(
    inputs: Sequence[str], outputs: Mapping[str, Path], how: Tokenization
) -> dict[Path, Tokenized]:
    """Tokenize each key of `outputs`, in the records of `inputs`, into its prefix's `.bin` and `.idx`.

    Nothing is written if a record is wrong. Memory grows by 4 bytes a document, for its length in the index.
    """
    shards = list_inputs(inputs)
    # One thread reads, the engine encodes on all cores in another, this one writes.
    blocks = engines.prefetch(read_texts(shards, [*outputs]))
    first = next(blocks, None)
    if first is None:
        raise DataError(f"{inputs[0]}: no record in {'it' if len(inputs) == 1 else 'all of the files'}")
    sampled = (text for texts in first[1] for text in texts[: engines.SAMPLE_DOCUMENTS])
    sample = [text[: engines.SAMPLE_CHARACTERS] for text in sampled]
    encoder, info = _load(how, sample)
    total = sum(shard.bytes for shard in shards)
    read, characters, done, empty = 0, 0, 0, dict.fromkeys(outputs, 0)

    def said(seconds: float) -> str:
        rate = f"{read:,} records, {characters / 1e6 / seconds:,.1f} million characters/s"
        return f"{rate}; files: {progress(done / 1e6, total / 1e6, 'MB', seconds=seconds)}"

    encoded = (
        (place, sum(map(len, chain.from_iterable(texts))), [*map(encoder.encode, texts)])
        for place, texts in chain([first], blocks)
    )
    with ExitStack() as stack:
        stack.enter_context(reporting(_log, said))
        dtype = token_dtype(info.vocab_size)
        writers = {key: stack.enter_context(dataset_writer(path, dtype)) for key, path in outputs.items()}
        for place, size, parts in engines.prefetch(encoded):
            done, read, characters = place, read + len(parts[0][1]), characters + size
            for (key, writer), (tokens, lengths) in zip(writers.items(), parts, strict=True):
                filled = lengths[lengths > 0]
                empty[key] += len(lengths) - len(filled)
                kept = filled if info.bos_id is None else lengths
                writer.write(*engines.enclose(tokens, kept, info, end=how.end))
    return {
        path: Tokenized(read, writers[key].documents, writers[key].tokens, empty[key], encoder.name, info)
        for key, path in outputs.items()
    }


def _load(how: Tokenization, sample: Sequence[str]) -> engines.Opened:
    if how.bos == "tokenizer":
        return engines.load_encoder(how.tokenizer, how.literals, how.engine, sample)
    with TemporaryDirectory() as folder:
        write_tokenizer(how.tokenizer, Path(folder), how.bos)
        return engines.load_encoder(Path(folder), how.literals, how.engine, sample)
