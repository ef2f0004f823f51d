"""Pack problem records into SFT samples once, into a folder that training reads; needs no torch.

A record is tokenized as for continued pretraining (`cpt_text` and the end-of-text token), so that both stages
see the same tokens; only the response counts in the loss. Records are never cut: a sample contains whole
records, and attention does not cross them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
from numpy.lib.format import open_memmap

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.corpus_folder import KIND, NOT_TRAINED, SFT_KIND, corpus_counts, read_tokenizer
from megatron_mathcpt.formats.files import read_lines
from megatron_mathcpt.formats.indexed_dataset import read_documents
from megatron_mathcpt.formats.manifest import Manifest, is_complete, load_manifest, write_manifest
from megatron_mathcpt.records import cpt_text, problem_of_row, prompt_text

Ids = npt.NDArray[np.int32]


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
    if is_complete(out, SFT_KIND, inputs=inputs, config=config):
        return load_manifest(out, SFT_KIND)
    examples = list(read_examples(corpus, pool, found.tokenizer.eos_id))
    if not examples:
        raise DataError(f"{corpus / 'documents' / pool}.jsonl: no problem records to pack")
    fitting = [example for example in examples if len(example.tokens) - 1 <= seq_length]
    samples = list(group(fitting, seq_length, packed))
    out.mkdir(parents=True, exist_ok=True)
    shape, names = (len(samples), seq_length), ("tokens", "labels", "documents")
    arrays = [open_memmap(out / f"{name}.npy", mode="w+", dtype=np.int32, shape=shape) for name in names]
    trained = sum(fill_sample(*sample) for sample in zip(samples, *arrays, strict=True))
    for array in arrays:
        array.flush()
    with (out / "records.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps([example.id for example in sample]) + "\n" for sample in samples)
    counts = {
        "samples": len(samples),
        "seq_length": seq_length,
        "records": len(fitting),
        "dropped_too_long": len(examples) - len(fitting),
        "trained_tokens": trained,
        "tokens": sum(len(example.tokens) for example in fitting),
        "corpus_tokens": found.pools[pool].train.tokens,  # the same records as CPT text
        "tokenizer": found.tokenizer.model_dump(),
    }
    return write_manifest(out, SFT_KIND, inputs=inputs, counts=counts, config=config)


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
