"""From a step of a run back to the documents it saw: pool, document of the indexed dataset, record.

Read from the run's config and the corpus; no process group, no GPU.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.train.inputs import resolve_inputs

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Seen:
    """One document, or a part of it, that a sample showed; `record` is None if no record has its text."""

    sample: int
    pool: str
    document: int
    record: str | None
    text: str


def trace_step(run_folder: Path, step: int) -> list[Seen]:
    """Every document that step `step` (from 1) of a run trained on, in the order of its samples.

    Raises `ConfigError` if the run has no such step, `ManifestError` if its data is not there any more.
    """
    config = load_config(run_folder / "config.yaml", ExperimentConfig)
    if not 1 <= step <= config.train.train_steps:
        raise ConfigError(f"step {step}: {run_folder} has steps 1 to {config.train.train_steps}")
    size = config.train.global_batch_size
    samples = range((step - 1) * size, step * size)
    if config.data.sft is not None:
        return list(_sft_records(config, config.data.sft, samples))
    return _blend_documents(config, run_folder, samples)


def _sft_records(config: ExperimentConfig, folder: Path, samples: range) -> Iterator[Seen]:
    from megatron_mathcpt.train.datasets import SftDataset

    dataset = SftDataset(folder, config.train.train_samples, config.seed)
    records = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    for sample in samples:
        row = dataset.row(sample)
        for record in json.loads(records[row]):
            yield Seen(sample, "sft", row, record, "")


def _blend_documents(config: ExperimentConfig, run_folder: Path, samples: range) -> list[Seen]:
    from tokenizers import Tokenizer

    from megatron_mathcpt.train.datasets import build_blend, index_cache

    inputs = resolve_inputs(config)
    assert config.data.corpus is not None
    cache = index_cache(inputs, run_folder)
    if not cache.is_dir():
        raise DataError(
            f"{cache}: the run's sample index is not there; the run has not started or was cleaned"
        )
    blend = build_blend(inputs, cache)
    tokenizer = Tokenizer.from_file(str(config.data.corpus / "tokenizer" / "tokenizer.json"))
    pools = list(config.data.blend)
    found = []
    for sample in samples:
        pool = int(blend.dataset_index[sample])
        dataset = blend.datasets[pool]
        for document in _documents_of(dataset, int(blend.dataset_sample_index[sample])):
            tokens = [token for token in dataset.dataset.get(document).tolist() if token != inputs.eos_id]
            found.append((sample, pools[pool], document, tokenizer.decode(tokens, skip_special_tokens=False)))
    records = _records_by_text(config.data.corpus, {(pool, text) for _, pool, _, text in found})
    return [
        Seen(sample, pool, document, records.get((pool, text)), text[:_SHOWN_CHARACTERS])
        for sample, pool, document, text in found
    ]


def _documents_of(dataset: Any, sample: int) -> list[int]:
    """Documents that a GPTDataset's sample is cut from, by its own index."""
    documents = dataset._query_document_sample_shuffle_indices(sample)[1]  # a third item follows from 0.19 on
    return [int(document) for document in documents]


def _records_by_text(corpus: Path, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Record id of each (pool, text), found in one pass over the pools' documents."""
    found = {}
    for pool in {pool for pool, _ in wanted}:
        with (corpus / "documents" / f"{pool}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if (pool, row["text"]) in wanted:
                    found[pool, row["text"]] = row["id"]
    return found
