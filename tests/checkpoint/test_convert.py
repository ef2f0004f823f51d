"""Hugging Face to checkpoint and back, bit for bit, for the published shapes and both ways of tying."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.checkpoint.huggingface import write_hf_folder, write_safetensors
from megatron_mathcpt.config.shape import LlamaShape, RopeScaling
from megatron_mathcpt.data.tokenizer import train_tokenizer
from megatron_mathcpt.errors import CheckpointError, ConfigError
from megatron_mathcpt.model.weights import RandomWeights

ROOT = Path(__file__).resolve().parents[2]
LLAMA2 = LlamaShape(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=172,
    num_attention_heads=8,
    vocab_size=320,
    init_method_std=0.1,
)
SHAPES = {  # the published models' proportions: heads to groups, tying, odd vocabularies
    "Llama-2-7B": LLAMA2,
    "Llama-2-70B": LLAMA2.model_copy(update={"num_query_groups": 1}),
    "Llama-3-8B": LLAMA2.model_copy(update={"num_query_groups": 2, "vocab_size": 501, "rotary_base": 5e5}),
    "Llama-3.1-8B": LLAMA2.model_copy(
        update={"num_query_groups": 2, "rotary_base": 5e5, "rope_scaling": RopeScaling(factor=8.0)}
    ),
    "Llama-3.2-1B": LLAMA2.model_copy(
        update={
            "num_query_groups": 2,
            "share_embeddings_and_output_weights": True,
            "rope_scaling": RopeScaling(factor=32.0),
        }
    ),
    "SmolLM2-135M": LLAMA2.model_copy(
        update={
            "num_attention_heads": 9,
            "num_query_groups": 3,
            "hidden_size": 72,
            "share_embeddings_and_output_weights": True,
        }
    ),
}


class InType:
    """A source in another type."""

    def __init__(self, shape: LlamaShape, dtype: torch.dtype) -> None:
        self.source = RandomWeights(shape, 5)
        self.dtype = dtype

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        return self.source.read(key, layer).to(self.dtype)


def make_folder(folder: Path, shape: LlamaShape, dtype: torch.dtype = torch.float32) -> Path:
    write_hf_folder(InType(shape, dtype), shape, folder, eos_id=2)
    train_tokenizer(iter(["already there, 已知"] * 9), 300, folder)
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    source = make_folder(tmp_path / "hf", SHAPES[name])
    there = import_from_hf(source, tmp_path / "checkpoint")
    back = export_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert digest(tmp_path / "back" / file) == digest(source / file), file
    assert there.max_abs_logit_difference is not None
    assert max(there.max_abs_logit_difference, back.max_abs_logit_difference or 0.0) <= 1e-5


def test_bf16_weights_stay_bf16(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2, torch.bfloat16)
    import_from_hf(source, tmp_path / "checkpoint", verify=False)
    done = export_to_hf(tmp_path / "checkpoint", tmp_path / "back", verify=False)
    assert done.max_abs_logit_difference is None
    assert digest(tmp_path / "back" / "model.safetensors") == digest(source / "model.safetensors")


def test_again_does_nothing_and_needs_no_torch(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2)
    import_from_hf(source, tmp_path / "checkpoint", verify=False)
    assert import_from_hf(source, tmp_path / "checkpoint", verify=False).was_there
    export_to_hf(tmp_path / "checkpoint", tmp_path / "back", verify=False)
    tool = [sys.executable, "-X", "importtime", "tools/convert.py", "to-hf", str(tmp_path / "checkpoint")]
    done = subprocess.run(
        [*tool, "--out", str(tmp_path / "back")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "already there; logits not compared" in done.stdout
    assert "| torch" not in done.stderr


def test_transformers_reads_what_the_stream_writes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5])}
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", sizes, torch.float32, iter(tensors.values()))
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_wrong_weights_are_caught_by_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query and key swapped on the way in: every size fits, only the logits tell."""
    from megatron_mathcpt.checkpoint import names

    source = make_folder(tmp_path / "hf", LLAMA2)
    q, k, v = names.LAYER_NAMES[names.QKV]
    monkeypatch.setitem(names.LAYER_NAMES, names.QKV, (k, q, v))
    with pytest.raises(CheckpointError, match=r"logits .* differ by"):
        import_from_hf(source, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2)
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer there"):
        import_from_hf(source, tmp_path / "checkpoint")
    (source / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        import_from_hf(source, tmp_path / "checkpoint")
    make_folder(source, LLAMA2.model_copy(update={"num_layers": 3}))
    make_config = make_folder(tmp_path / "four", LLAMA2)
    (source / "config.json").write_bytes((make_config / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.3\."):
        import_from_hf(source, tmp_path / "checkpoint")
