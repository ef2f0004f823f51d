"""Hugging Face to checkpoint and back, bit for bit, for the published shapes and both ways of tying."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.checkpoint.huggingface import write_hf_folder
from megatron_mathcpt.config.shape import LlamaShape, RopeScaling
from megatron_mathcpt.data.tokenizer import train_tokenizer
from megatron_mathcpt.errors import CheckpointError, ConfigError
from megatron_mathcpt.model.weights import RandomWeights
from tests.checkpoint.conftest import LLAMA2, LLAMA3, SHAPES, SMOLLM2

ROOT = Path(__file__).resolve().parents[2]
MORE = SHAPES | {
    "one group": LLAMA2.model_copy(update={"num_query_groups": 1}),
    "Llama-3.1-8B": LLAMA2.model_copy(update=LLAMA3 | {"rope_scaling": RopeScaling(factor=8.0)}),
    "SmolLM2-135M": SMOLLM2,
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


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in MORE), ("Llama-3-8B", torch.bfloat16)]
)
def test_there_and_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    source = make_folder(tmp_path / "hf", MORE[name], dtype)
    there = import_from_hf(source, tmp_path / "checkpoint")
    back = export_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes(), file
    assert there.max_abs_logit_difference is not None
    assert max(there.max_abs_logit_difference, back.max_abs_logit_difference or 0.0) <= 1e-5


def test_again_does_nothing_and_needs_no_torch(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2)
    import_from_hf(source, tmp_path / "checkpoint", verify=False)
    assert import_from_hf(source, tmp_path / "checkpoint", verify=False).was_there
    done = export_to_hf(tmp_path / "checkpoint", tmp_path / "back", verify=False)
    assert done.max_abs_logit_difference is None
    tool = [sys.executable, "-X", "importtime", "tools/convert.py", "to-hf", str(tmp_path / "checkpoint")]
    again = subprocess.run(
        [*tool, "--out", str(tmp_path / "back")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "already there; logits not compared" in again.stdout
    assert "| torch" not in again.stderr


def test_wrong_weights_are_caught_by_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query and key swapped on the way in: every size fits, only the logits tell."""
    from megatron_mathcpt.checkpoint import huggingface

    source = make_folder(tmp_path / "hf", LLAMA2)
    original = huggingface.pack

    def swapped(key: str, parts: list[torch.Tensor], shape: LlamaShape) -> torch.Tensor:
        return original(key, [parts[1], parts[0], parts[2]] if len(parts) == 3 else parts, shape)

    monkeypatch.setattr(huggingface, "pack", swapped)
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
