"""From a step back to its documents, against the tokens that the step was given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_mathcpt import parallel
from megatron_mathcpt.config.base import dump_yaml, load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.corpus_folder import TRAIN, VALIDATION, make_places
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.train.datasets import build_blend, index_cache
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.trace import trace_step
from tests.train.conftest import ConfigOf, write_indexed

EOS = 0


@pytest.fixture
def run(config_of: ConfigOf, tmp_path: Path) -> Path:
    """A run folder with a config, on two pools of one-letter documents; the first and last are equal."""
    corpus = tmp_path / "corpus"
    words = Tokenizer(models.WordLevel({"<eos>": EOS} | {chr(96 + n): n for n in range(1, 27)}, "<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pools, shards = {}, []
    (corpus / "documents").mkdir(parents=True)
    for shard, (pool, letters) in enumerate((("general", "abcdefga"), ("problem_solving", "stuvwxys"))):
        rows = [{"id": f"{pool}-validation", "text": " ".join(letters[0] * 5)}]
        documents = []
        for number, letter in enumerate(letters):
            length = 5 + number % 7
            documents.append([ord(letter) - 96] * length + [EOS])
            rows.append({"id": f"{pool}-{number}", "text": " ".join(letter * length)})
        write_indexed(corpus / "datasets" / pool / "train", documents)
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        (corpus / "documents" / f"{pool}.jsonl").write_bytes(b"".join(lines))
        splits = np.array([VALIDATION] + [TRAIN] * 8, np.uint8)
        places = make_places([len(line) for line in lines], shard, np.arange(1, 10, dtype=np.uint64), splits)
        (corpus / "documents" / f"{pool}.places").write_bytes(places)
        pools[pool] = {"train": {"documents": 8, "tokens": sum(6 + n % 7 for n in range(8))}}
        shards.append({"name": f"{pool}-00000", "source": pool, "file": f"{pool}.jsonl"})
    (corpus / "report.json").write_text(json.dumps({"shards": shards}))
    (corpus / "tokenizer").mkdir()
    words.save(str(corpus / "tokenizer" / "tokenizer.json"))
    tokenizer = {"vocab_size": 27, "eos_id": EOS, "sha256": "none"}
    counts = {"tokenizer": tokenizer, "pools": pools, "sources": {}}
    sources = {pool: {"pool": pool} for pool in pools}
    write_manifest(corpus, "corpus", inputs={}, counts=counts, config={"sources": sources})
    config = config_of(
        data={"corpus": str(corpus), "blend": {"general": 1.0, "problem_solving": 1.0}},
        train={"seq_length": 16, "train_tokens": 256},
        validation={"sets": []},
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_yaml(resolve_inputs(config).config))
    return tmp_path / "run"


def blend_of(run: Path) -> Any:
    """What the run reads, its index built."""
    inputs = resolve_inputs(load_config(run / "config.yaml", ExperimentConfig))
    use_cpu()
    parallel.start_alone(inputs.config.parallel)
    blend = build_blend(inputs, index_cache(inputs, run))
    parallel.stop()
    return blend


def test_a_step_is_traced_to_the_records_whose_tokens_it_saw(run: Path) -> None:
    with pytest.raises(DataError, match="sample index is not there"):
        trace_step(run, 1)
    with pytest.raises(ConfigError, match="has steps 1 to 4"):
        trace_step(run, 5)
    blend = blend_of(run)
    for step in (1, 3):
        seen = trace_step(run, step)
        assert {one.sample for one in seen} == set(range(4 * step - 4, 4 * step))
        for sample in range(4 * step - 4, 4 * step):
            tokens = blend[sample]["tokens"].tolist() + blend[sample]["labels"].tolist()
            letters = {chr(96 + token) for token in tokens if token != EOS}
            traced = [one for one in seen if one.sample == sample]
            assert letters <= {one.text[0] for one in traced}
            assert all(one.record == f"{one.pool}-{one.document}" for one in traced)


def test_equal_texts_are_told_apart(run: Path) -> None:
    blend_of(run)
    seen = [one for step in range(1, 5) for one in trace_step(run, step)]
    for pool, text in (("general", "a a a a a"), ("problem_solving", "s s s s s")):
        equal = {(one.document, one.record) for one in seen if (one.pool, one.text) == (pool, text)}
        assert equal == {(0, f"{pool}-0"), (7, f"{pool}-7")}
