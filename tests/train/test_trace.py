"""From a step back to its documents, against the tokens that the step was given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_mathcpt import parallel
from megatron_mathcpt.config.base import dump_yaml, load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.train.datasets import build_blend, index_cache
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.trace import trace_step

EOS = 0


@pytest.fixture
def run(config_of: Callable[..., ExperimentConfig], tmp_path: Path) -> Path:
    """A run folder with a config, on two pools of documents that each hold one letter of their own."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    corpus = tmp_path / "corpus"
    tokenizer = Tokenizer(models.WordLevel({"<eos>": EOS} | {chr(96 + n): n for n in range(1, 27)}, "<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pools = {}
    (corpus / "documents").mkdir(parents=True)
    for pool, letters in (("general", "abcdefgh"), ("problem_solving", "stuvwxyz")):
        prefix = corpus / "datasets" / pool / "train"
        prefix.parent.mkdir(parents=True)
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        rows = []
        for number, letter in enumerate(letters):
            length = 5 + 3 * number
            builder.add_document(torch.tensor([ord(letter) - 96] * length + [EOS]), [length + 1])
            rows.append(f'{{"id": "{pool}-{letter}", "text": "{" ".join(letter * length)}"}}\n')
        builder.finalize(f"{prefix}.idx")
        (corpus / "documents" / f"{pool}.jsonl").write_text("".join(rows))
        pools[pool] = {"train": {"documents": 8, "tokens": sum(6 + 3 * n for n in range(8))}}
    (corpus / "tokenizer").mkdir()
    tokenizer.save(str(corpus / "tokenizer" / "tokenizer.json"))
    tokenizer = {"vocab_size": 27, "eos_id": EOS, "sha256": "none"}
    counts = {"tokenizer": tokenizer, "pools": pools, "sources": {}}
    write_manifest(corpus, "corpus", inputs={}, counts=counts, config={})
    config = config_of(
        data={"corpus": str(corpus), "blend": {"general": 1.0, "problem_solving": 1.0}},
        train={"seq_length": 16, "train_tokens": 256},
        validation={"sets": []},
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_yaml(resolve_inputs(config).config))
    return tmp_path / "run"


def test_a_step_is_traced_to_the_records_whose_tokens_it_saw(run: Path) -> None:
    inputs = resolve_inputs(load_config(run / "config.yaml", ExperimentConfig))
    with pytest.raises(DataError, match="sample index is not there"):
        trace_step(run, 1)
    use_cpu()
    parallel.start_alone(inputs.config.parallel)
    blend = build_blend(inputs, index_cache(inputs, run))
    parallel.stop()
    for step in (1, 3):
        seen = trace_step(run, step)
        assert {one.sample for one in seen} == set(range(4 * step - 4, 4 * step))
        for sample in range(4 * step - 4, 4 * step):
            tokens = blend[sample]["tokens"].tolist() + blend[sample]["labels"].tolist()
            letters = {chr(96 + token) for token in tokens if token != EOS}
            traced = [one for one in seen if one.sample == sample]
            assert {one.record for one in traced} == {f"{one.pool}-{one.text[0]}" for one in traced}
            assert letters <= {one.text[0] for one in traced}
    assert {one.pool for step in range(1, 5) for one in trace_step(run, step)} == {
        "general",
        "problem_solving",
    }


def test_a_step_that_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match="has steps 1 to 4"):
        trace_step(run, 5)
