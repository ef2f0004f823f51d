"""Problem records packed into SFT samples, once, into a folder that training reads; no torch.

A record is tokenised just as for continued pretraining (`cpt_text` and the end-of-sequence token), so the two
stages see the same tokens; only the response counts in the loss. Records are never cut: a sample holds whole
records one after the other, and attention stays within a record.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import Manifest, is_complete, load_manifest, write_manifest
from megatron_mathcpt.records import Problem, cpt_text, prompt_text

NOT_TRAINED = -1  # label of a position that does not count in the loss


@dataclass(frozen=True)
class Example:
    """One record: its token ids with the end-of-sequence token, and how many of them are prompt."""

    id: str
    tokens: list[int]
    prompt_length: int


@dataclass(frozen=True)
class PackSettings:
    """Sequence length and packing; `packed` False gives each record a sample of its own."""

    seq_length: int
    packed: bool = True


def pack_pool(corpus: Path, pool: str, settings: PackSettings, out: Path) -> Manifest:
    """Pack the problem records of a corpus folder's pool into `out` (manifest kind "sft").

    Files: tokens.npy, labels.npy (int32, `NOT_TRAINED` where the loss does not count) and documents.npy
    (int32, number of the record within the sample), all [samples, seq_length]; records.jsonl, the ids of each
    sample. Documents of the validation split are left out, records longer than a sample are dropped and
    counted. Raises `DataError` if the pool holds no problem records.
    """
    manifest = load_manifest(corpus, "corpus")
    inputs = {"corpus": manifest.fingerprint()}
    config = {"pool": pool, "seq_length": settings.seq_length, "packed": settings.packed}
    if is_complete(out, "sft", inputs=inputs, config=config):
        return load_manifest(out, "sft")
    examples = list(read_examples(corpus, pool, manifest.counts["tokenizer"]["eos_id"]))
    if not examples:
        raise DataError(f"{corpus / 'documents' / pool}.jsonl: no problem records to pack")
    fitting = [example for example in examples if len(example.tokens) - 1 <= settings.seq_length]
    samples = list(group(fitting, settings))
    out.mkdir(parents=True, exist_ok=True)
    trained = _write_arrays(samples, settings.seq_length, out)
    with (out / "records.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps([example.id for example in sample]) + "\n" for sample in samples)
    counts = {
        "samples": len(samples),
        "seq_length": settings.seq_length,
        "records": len(fitting),
        "dropped_too_long": len(examples) - len(fitting),
        "trained_tokens": trained,
        "tokens": sum(len(example.tokens) for example in fitting),
        "corpus_tokens": manifest.counts["pools"][pool]["train"]["tokens"],  # the same records as CPT text
        "tokenizer": manifest.counts["tokenizer"],
    }
    return write_manifest(out, "sft", inputs=inputs, counts=counts, config=config)


def read_examples(corpus: Path, pool: str, eos_id: int) -> Iterator[Example]:
    """Problem records of a pool's training split, tokenised."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    held_out = set(_split_documents(corpus / "datasets" / pool / "validation"))
    with (corpus / "documents" / f"{pool}.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if "problem" not in row:
                continue
            problem = Problem.model_validate({"id": row["id"], **row["problem"]})
            encoded = tokenizer.encode(cpt_text(problem), add_special_tokens=False)
            tokens = [*encoded.ids, eos_id]
            if tuple(tokens) in held_out:
                continue
            # A token that reaches over the border counts as prompt.
            border = len(prompt_text(problem.question, problem.language))
            yield Example(row["id"], tokens, sum(start < border for start, _ in encoded.offsets))


def group(examples: list[Example], settings: PackSettings) -> Iterator[list[Example]]:
    """Whole records in order, as many to a sample as fit; a record of n tokens takes n - 1 positions."""
    sample: list[Example] = []
    free = settings.seq_length
    for example in examples:
        if sample and (not settings.packed or len(example.tokens) - 1 > free):
            yield sample
            sample, free = [], settings.seq_length
        sample.append(example)
        free -= len(example.tokens) - 1
    if sample:
        yield sample


def fill_sample(sample: list[Example], tokens: Any, labels: Any, documents: Any) -> int:
    """Write a sample's records into its rows of the three arrays; the number of trained tokens.

    Position i of a record predicts its token i + 1, trained if that token is of the response. The rest of
    the sample is a document of its own that is not trained.
    """
    labels[:], documents[:] = NOT_TRAINED, len(sample)
    begin = 0
    for number, example in enumerate(sample):
        end = begin + len(example.tokens) - 1
        tokens[begin:end], documents[begin:end] = example.tokens[:-1], number
        labels[begin + example.prompt_length - 1 : end] = example.tokens[example.prompt_length :]
        begin = end
    return int((labels != NOT_TRAINED).sum())


def _write_arrays(samples: list[list[Example]], seq_length: int, out: Path) -> int:
    shape = (len(samples), seq_length)
    arrays = [
        np.lib.format.open_memmap(out / f"{name}.npy", mode="w+", dtype=np.int32, shape=shape)
        for name in ("tokens", "labels", "documents")
    ]
    trained = sum(
        fill_sample(sample, *(array[row] for array in arrays)) for row, sample in enumerate(samples)
    )
    for array in arrays:
        array.flush()
    return trained


def _split_documents(prefix: Path) -> Iterator[tuple[int, ...]]:
    """Documents of a small indexed dataset (Megatron-Core's MMIDIDX format, version 1)."""
    with prefix.with_suffix(".idx").open("rb") as file:
        file.seek(9 + 8)
        dtype = np.dtype({4: np.int32, 8: np.uint16}[file.read(1)[0]])
        count = int(np.frombuffer(file.read(8), dtype=np.int64)[0])
        file.seek(8, 1)
        lengths = np.frombuffer(file.read(4 * count), dtype=np.int32)
    tokens = np.fromfile(prefix.with_suffix(".bin"), dtype=dtype)
    for document in np.split(tokens, np.cumsum(lengths)[:-1]):
        yield tuple(document.tolist())
