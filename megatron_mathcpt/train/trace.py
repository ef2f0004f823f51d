"""From a step of a run back to the documents it saw: pool, document of the indexed dataset, record.

Read from the run's config and the corpus; no process group, no GPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.corpus_folder import SPLITS, TRAIN, Selection, open_corpus
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.train.inputs import resolve_inputs

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Seen:
    """One record, whole or in part, that a sample showed."""

    sample: int
    pool: str
    document: int
    record: str
    text: str


def trace_step(run_folder: Path, step: int) -> list[Seen]:
    """Every document that step `step` (from 1) trained on, in order; `ConfigError` without such a step."""
    config = load_config(run_folder / "config.yaml", ExperimentConfig)
    if not 1 <= step <= config.train.train_steps:
        raise ConfigError(f"step {step}: {run_folder} has steps 1 to {config.train.train_steps}")
    size = config.train.global_batch_size
    samples = range((step - 1) * size, step * size)
    if config.data.sft is not None:
        return _sft_records(config, config.data.sft, samples)
    return _blend_documents(config, run_folder, samples)


def _sft_records(config: ExperimentConfig, folder: Path, samples: range) -> list[Seen]:
    from megatron_mathcpt.train.datasets import SftDataset

    dataset = SftDataset(folder, config.train.train_samples, config.seed)
    records: list[Any] = read_json_lines(folder / "records.jsonl")  # a row has the ids of a sample's records
    rows = [(sample, dataset.row(sample)) for sample in samples]
    return [Seen(sample, "sft", row, record, "") for sample, row in rows for record in records[row]]


def _blend_documents(config: ExperimentConfig, run_folder: Path, samples: range) -> list[Seen]:
    from megatron_mathcpt.train.datasets import build_blend, index_cache

    inputs = resolve_inputs(config)
    assert config.data.corpus is not None
    cache = index_cache(inputs, run_folder)
    if not cache.is_dir():
        raise DataError(
            f"{cache}: the run's sample index is not there; the run has not started or was cleaned"
        )
    blend = build_blend(inputs, cache)
    pools = list(config.data.blend)
    seen: list[tuple[int, str, int]] = []
    for sample in samples:
        pool, place = int(blend.dataset_index[sample]), int(blend.dataset_sample_index[sample])
        # By a GPTDataset's own index; a third item follows the documents from 0.19 on.
        documents = blend.datasets[pool]._query_document_sample_shuffle_indices(place)[1]
        seen += [(sample, pools[pool], int(document)) for document in documents]
    corpus = open_corpus(config.data.corpus)
    kept = {
        (pool, one.index): one.row
        for pool in {pool for _, pool, _ in seen}
        for one in corpus.choose(Selection(pool, split=SPLITS[TRAIN]), (d for _, p, d in seen if p == pool))
    }
    rows = [(one, kept[one[1:]]) for one in seen]
    return [Seen(*one, record=row["id"], text=row["text"][:_SHOWN_CHARACTERS]) for one, row in rows]
