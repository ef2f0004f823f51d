"""Pack problem records into SFT samples once, into a folder that training reads; needs no torch.

A record is tokenized as for continued pretraining (`cpt_text` and the end-of-text token), so that both stages
see the same tokens; only the response counts in the loss. Records are never cut: a sample contains whole
records, and attention does not cross them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
from numpy.lib.format import write_array_header_1_0

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.corpus_folder import ADOPTED, KIND, NOT_TRAINED, SFT_KIND, corpus_counts
from megatron_mathcpt.formats.files import atomic_writer, read_lines
from megatron_mathcpt.formats.indexed_dataset import read_documents
from megatron_mathcpt.formats.manifest import (
    Manifest,
    is_complete,
    load_manifest,
    verify_part,
    write_manifest,
)
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.tokenizer_folder import read_tokenizer
from megatron_mathcpt.records import cpt_text, problem_of_row, prompt_text

Ids = npt.NDArray[np.int32]
ARRAYS = ("tokens", "labels", "documents")


@dataclass(frozen=True)
class Example:
    """One record: its token ids with the end-of-text token, and how many of them are prompt."""

    id: str
    tokens: list[int]
    prompt_length: int


def pack_pool(corpus: Path, pool: str, out: Path, seq_length: int, packed: bool = True) -> Manifest:
    """Pack the training split of a pool of problem records into `out` (manifest kind "sft").

    Writes tokens.npy, labels.npy (`NOT_TRAINED` where the loss does not count) and documents.npy (number of
    the record in its sample), all int32 [samples, seq_length], and records.jsonl, the ids in each sample.
    Without `packed` each record has a sample of its own. Longer records are dropped and counted. Raises
    `DataError` if the pool has no problem records.
    """
    manifest = load_manifest(corpus, KIND)
    found = corpus_counts(manifest)
    inputs = {"corpus": manifest.fingerprint()}
    config = {"pool": pool, "seq_length": seq_length, "packed": packed}
    is_packed = partial(is_complete, out, SFT_KIND, inputs=inputs, config=config)
    if is_packed():
        return load_manifest(out, SFT_KIND)
    if ADOPTED in manifest.config:
        raise DataError(f"{corpus}: has tokens of others, no problem records to pack; build a corpus of them")
    verify_part(corpus, manifest, lambda name: name.startswith("documents/"))
    examples = list(read_examples(corpus, pool, found.tokenizer.eos_id))
    if not examples:
        raise DataError(f"{corpus / 'documents' / pool}.jsonl: no problem records to pack")
    fitting = [example for example in examples if len(example.tokens) - 1 <= seq_length]
    samples = list(group(fitting, seq_length, packed))
    with locked_folder(out, SFT_KIND):
        if is_packed():  # by another process, meanwhile
            return load_manifest(out, SFT_KIND)
        counts = {
            "samples": len(samples),
            "seq_length": seq_length,
            "records": len(fitting),
            "dropped_too_long": len(examples) - len(fitting),
            "trained_tokens": _write_samples(samples, seq_length, out),
            "tokens": sum(len(example.tokens) for example in fitting),
            "corpus_tokens": found.pools[pool].train.tokens,  # the same records as CPT text
            "tokenizer": found.tokenizer.model_dump(),
        }
        return write_manifest(out, SFT_KIND, inputs=inputs, counts=counts, config=config)


def _write_samples(samples: Sequence[Sequence[Example]], seq_length: int, out: Path) -> int:
    """Write the arrays and `records.jsonl`; returns the number of trained tokens."""
    # Not through mapped memory: on a full disk that ends the process without a word.
    header = {"descr": "<i4", "fortran_order": False, "shape": (len(samples), seq_length)}
    trained = 0
    with ExitStack() as stack:
        records = stack.enter_context(atomic_writer(out / "records.jsonl"))
        files = [stack.enter_context(atomic_writer(out / f"{name}.npy")) for name in ARRAYS]
        for file in files:
            write_array_header_1_0(file, header)
        for sample in samples:
            rows = np.zeros((len(files), seq_length), np.int32)
            trained += fill_sample(sample, *rows)
            for file, row in zip(files, rows, strict=True):
                file.write(row.tobytes())
            records.write(json.dumps([example.id for example in sample]).encode() + b"\n")
    return trained


def read_examples(corpus: Path, pool: str, eos_id: int) -> Iterator[Example]:
    """Tokenize the problem records of a pool's training split."""
    tokenizer = read_tokenizer(corpus / "tokenizer" / "tokenizer.json")
    # The validation split is recognized by its tokens.
    held_out = {ids.tobytes() for ids in read_documents(corpus / "datasets" / pool / "validation")}
    for _, lines in read_lines(corpus / "documents" / f"{pool}.jsonl"):
        for row in map(orjson.loads, lines):
            if "problem" not in row:
                continue
            problem = problem_of_row({"id": row["id"], **row["problem"]})
            encoded = tokenizer.encode(cpt_text(problem), add_special_tokens=False)
            tokens = [*encoded.ids, eos_id]
            if np.array(tokens, np.int64).tobytes() in held_out:
                continue
            # A token that spans the border counts as prompt.
            border = len(prompt_text(problem.question, problem.language))
            yield Example(row["id"], tokens, sum(start < border for start, _ in encoded.offsets))


def group(examples: Sequence[Example], seq_length: int, packed: bool) -> Iterator[list[Example]]:
    """Fill samples with whole records in order; a record of n tokens takes n - 1 positions."""
    sample: list[Example] = []
    free = seq_length
    for example in examples:
        if sample and (not packed or len(example.tokens) - 1 > free):
            yield sample
            sample, free = [], seq_length
        sample.append(example)
        free -= len(example.tokens) - 1
    if sample:
        yield sample


def fill_sample(sample: Sequence[Example], tokens: Ids, labels: Ids, documents: Ids) -> int:
    """Write a sample's records into its rows of the three arrays; returns the number of trained tokens."""
    # Position i of a record predicts its token i + 1, trained if that is part of the response. The rest of
    # the sample is a document of its own without trained tokens.
    labels[:], documents[:] = NOT_TRAINED, len(sample)
    begin = 0
    for number, example in enumerate(sample):
        end = begin + len(example.tokens) - 1
        tokens[begin:end], documents[begin:end] = example.tokens[:-1], number
        labels[begin + example.prompt_length - 1 : end] = example.tokens[example.prompt_length :]
        begin = end
    return int((labels != NOT_TRAINED).sum())
