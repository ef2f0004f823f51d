"""The packing of Hugging Face's tensors, the identity of foreign weights, where a tokenizer is."""

from pathlib import Path

import pytest
import torch

from megatron_mathcpt.checkpoint.convert import hf_fingerprint, own_tokenizer
from megatron_mathcpt.checkpoint.huggingface import pack
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path, load_sealed, seal
from megatron_mathcpt.model.weights import LAYERS, QKV

SHAPE = LlamaShape(
    num_layers=2, hidden_size=8, ffn_hidden_size=6, num_attention_heads=4, num_query_groups=2, vocab_size=5
)


def test_query_key_and_value_of_a_group_lie_together_and_gate_above_up() -> None:
    # 4 heads of 2 channels in 2 groups; rows are numbered: q 0-7, k 10-13, v 20-23.
    rows = [torch.arange(start, start + count).unsqueeze(1) for start, count in ((0, 8), (10, 4), (20, 4))]
    packed = pack(QKV, rows, SHAPE).flatten().tolist()
    assert packed == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]
    parts = [torch.zeros(6, 8), torch.ones(6, 8)]
    assert pack(f"{LAYERS}mlp.linear_fc1.weight", parts, SHAPE)[:, 0].tolist() == [0.0] * 6 + [1.0] * 6


@pytest.mark.parametrize("size", [1000, 2**16, 5 * 2**20])
def test_other_weights_of_the_same_size_have_another_fingerprint(tmp_path: Path, size: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(size))
    first = hf_fingerprint(tmp_path)
    assert hf_fingerprint(tmp_path) == first
    weights.write_bytes(b"\x01" * size)
    assert hf_fingerprint(tmp_path) != first
    weights.write_bytes(bytes(size - 1) + b"\x01")
    assert hf_fingerprint(tmp_path) != first, "the last byte is in no block"


def make(run: Path, **config: object) -> Path:
    path = checkpoint_path(run, 1)
    path.mkdir(parents=True)
    write_manifest(path, "checkpoint", inputs={}, counts={}, config=config)
    seal(path)
    return path


def test_a_tokenizer_is_found_where_the_run_had_it_from(tmp_path: Path) -> None:
    def found(path: Path) -> Path:
        return own_tokenizer(path, load_sealed(path))

    base = make(tmp_path / "base", data={"corpus": "corpus"}, init={"scratch": True})
    assert found(base) == Path("corpus/tokenizer")
    # Fine-tuning needs no corpus.
    tuned = make(tmp_path / "tuned", data={"corpus": None}, init={"checkpoint": str(tmp_path / "base")})
    assert found(tuned) == Path("corpus/tokenizer")
    assert found(make(tmp_path / "hf", data={"corpus": None}, init={"hf": "weights"})) == Path("weights")
    with pytest.raises(CheckpointError, match="tells of no tokenizer"):
        found(make(tmp_path / "none"))
