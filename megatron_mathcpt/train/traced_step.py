"""From a step of a run back to the documents that it trained on."""

from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.config.phases import phase_at, phases_of
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.corpus_folder import SPLITS, TRAIN, Selection, open_corpus
from megatron_mathcpt.formats.files import read_rows
from megatron_mathcpt.formats.manifest import load_manifest, verify_part
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.train.blends import build_blends, index_cache, problem_of_cache
from megatron_mathcpt.train.datasets import SftDataset, corpus_of
from megatron_mathcpt.train.inputs import recorded_config, resolve_inputs

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class TracedDocument:
    sample: int
    pool: str
    document: int
    record: str
    text: str


def trace_step(run_folder: Path, step: int) -> list[TracedDocument]:
    """Find every document that `step` (from 1) trained on, in order; `ConfigError` if there is none."""
    config = recorded_config(run_folder)
    phases = phases_of(config)
    if not 1 <= step <= phases[-1].last_step:
        raise ConfigError(f"step {step}: {run_folder} has steps 1 to {phases[-1].last_step}")
    for folder in filter(None, (*config.data.corpora, config.data.sft)):
        verify_part(folder, load_manifest(folder, None))
    number = phase_at(phases, step)
    phase = phases[number]
    samples = range(phase.samples(step - 1), phase.samples(step))
    if config.data.sft is not None:
        dataset = SftDataset(config.data.sft, config.train.train_samples, config.seed)
        ids = read_rows(config.data.sft / "records.jsonl", list[str])  # of each row's records
        rows = [(sample, dataset.row(sample)) for sample in samples]
        return [TracedDocument(sample, "sft", row, record, "") for sample, row in rows for record in ids[row]]
    inputs = resolve_inputs(config)
    cache = index_cache(inputs, run_folder)
    if problem := problem_of_cache(cache):
        remedy = "start the run to build it (if it is finished, after removing its manifest.json)"
        raise DataError(f"{problem}: the run's sample index is missing or damaged; {remedy}")
    blend, pools = build_blends(inputs, cache)[number], list(phase.config.data.blend)
    seen: list[tuple[int, str, int]] = []
    for sample in samples:
        index = sample - phase.first_sample
        pool, place = int(blend.dataset_index[index]), int(blend.dataset_sample_index[index])
        # Only this private method knows the documents of a sample; in 0.19 it returns a third item.
        documents = blend.datasets[pool]._query_document_sample_shuffle_indices(place)[1]
        seen += [(sample, pools[pool], int(document)) for document in documents]
    records: dict[tuple[str, int], JsonObject] = {}
    for name in {name for _, name, _ in seen}:
        numbers = [document for _, owner, document in seen if owner == name]
        kept = open_corpus(corpus_of(config, name)).choose(Selection(name, split=SPLITS[TRAIN]), numbers)
        records |= {(name, one.index): one.row for one in kept}
    found = [(at, records[at[1:]]) for at in seen]
    return [TracedDocument(*at, record=row["id"], text=row["text"][:_SHOWN_CHARACTERS]) for at, row in found]
