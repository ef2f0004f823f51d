"""A run on a corpus folder of Megatron-Core's own pairs: trained, validated, traced, refused when damaged."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from megatron_mathcpt.data.adopt import adopt, named_pairs
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.train.inputs import resolve_inputs, verify_inputs
from megatron_mathcpt.train.traced_step import trace_step
from tests.support.megatron_pairs import write_pair
from tests.support.tokenized_corpus import EOS_ID, VOCAB_SIZE, make_documents
from tests.support.training_outputs import metric_rows
from tests.support.training_runs import ConfigOf, train

NO = {"sets": []}


@pytest.fixture
def adopted(tmp_path: Path) -> Path:
    words = {"</s>": EOS_ID} | {f"w{number}": number for number in range(1, VOCAB_SIZE)}
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.WordLevel(words, "</s>")).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    write_pair(tmp_path / "mine" / "a", make_documents(60, 0), kind="int64")
    write_pair(tmp_path / "mine" / "b", [document[:-1] for document in make_documents(30, 1)])
    write_pair(tmp_path / "mine" / "held", make_documents(5, 2))
    pairs = named_pairs([f"{name}={tmp_path}/mine/{name}" for name in "ab"], [f"a={tmp_path}/mine/held"])
    adopt(pairs, {}, tmp_path / "tokenizer", tmp_path / "corpus", "tokenizer")
    return tmp_path / "corpus"


@pytest.mark.usefixtures("layout")
def test_a_run_on_pairs_of_megatrons_is_traced_to_their_documents(
    adopted: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    data = {"corpus": str(adopted), "blend": {"a": 0.6, "b": 0.4}}
    config, out = config_of(data=data, validation={"sets": ["a"]}), tmp_path / "run"
    train(config, out)
    rows = metric_rows(out)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] and any("validation" in row for row in rows)
    seen = trace_step(out, 3)
    documents = {"a": make_documents(60, 0), "b": make_documents(30, 1)}
    assert {one.pool for one in seen} == {"a", "b"}
    for one in seen:
        assert one.record == f"{tmp_path}/mine/{one.pool}:{one.document}"
        ids = documents[one.pool][one.document]
        assert " ".join(f"w{number}" for number in ids[:5]) == " ".join(one.text.split()[:5])
    with pytest.raises(DataError, match=r"pool 'b': 30 of 30 documents have no end token, so data.reset_att"):
        resolve_inputs(config_of(data=data | {"reset_attention_mask": True}, validation=NO))
    resolve_inputs(config_of(data=data | {"reset_attention_mask": True, "blend": {"a": 1}}, validation=NO))
    tokens = tmp_path / "mine" / "a.bin"
    changed = np.fromfile(tokens, np.int64)
    changed[7] ^= 1
    changed.tofile(tokens)
    with pytest.raises(
        ManifestError, match=rf"a/train\.bin: checksum differs.* {tokens} was moved or changed"
    ):
        verify_inputs(config, full=False)
