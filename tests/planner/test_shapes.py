"""Shapes by name and from a config.json; parameters and operations against published counts and by hand."""

import json
from pathlib import Path

import pytest

from megatron_mathcpt.config.shape import hf_config
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Training
from megatron_mathcpt.planner.machine import load_hardware
from megatron_mathcpt.planner.shapes import flops_per_token, load_shape
from megatron_mathcpt.planner.step_time import speed

# Elements in the safetensors files of the released weights.
RELEASED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_those_of_the_released_weights(name: str) -> None:
    shape = load_shape(name)
    assert shape.total == shape.num_parameters() == RELEASED[name]


def test_operations_by_hand() -> None:
    # One layer of 8B: 4096 x 128 x (64 + 16) = 41 943 040 and 3 x 4096 x 14336 = 176 160 768 weights.
    flops = flops_per_token(load_shape("llama3-8b"), 8192)
    matrices = 6 * 32 * (41_943_040 + 176_160_768) + 6 * 128256 * 4096
    assert flops == (matrices + 6 * 32 * 8192 * 4096, matrices + 12 * 32 * 8192 * 4096)
    assert flops.causal / 1e9 == pytest.approx(51.47, abs=0.01)


@pytest.mark.parametrize(
    ("rate", "model", "length", "convention", "published"),
    [
        # Megatron-Bridge 25.11 counts causal attention: 14451 tokens/s are 744 TFLOP/s.
        (14451, "llama3-8b", 8192, "tflops_causal", 744),
        # NeMo 24.07 counts the whole of it: 12273 tokens/s are 711, 16934 are 780 TFLOP/s.
        (12273, "llama3-8b", 8192, "tflops_full", 711),
        (16934, "llama2-7b", 4096, "tflops_full", 780),
    ],
)
def test_both_conventions_give_the_published_tflops(
    rate: float, model: str, length: int, convention: str, published: float
) -> None:
    training, seconds = Training(length, 128), 128 * length / rate / 8
    found = speed(load_shape(model), training, load_hardware("h100"), seconds=seconds, gpus=8)
    assert found.tokens_per_second_per_gpu == pytest.approx(rate)
    assert getattr(found, convention) == pytest.approx(published, rel=2e-3)
    assert found.mfu == pytest.approx(found.tflops_causal / 989)


def test_a_shape_comes_from_a_config_json(tmp_path: Path) -> None:
    known = load_shape("llama3-8b").model_copy(update={"rotary_base": 500000.0})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf_config(known, dtype="bfloat16", bos_id=None, eos_id=None)))
    found = load_shape(str(path))
    assert found == known.model_copy(update={"name": tmp_path.name, "kv_channels": 128})
    assert load_shape(str(tmp_path)) == found


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"model 'llama9': neither a built-in shape \(.*llama3-8b"):
        load_shape("llama9")
