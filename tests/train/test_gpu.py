"""What only a GPU with Transformer Engine can do: FP8, CUDA graphs, overlapped tensor parallelism."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.log import read_json_lines
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.launch import free_port, local_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
    ),
]
DELAYED = {"fp8": "hybrid", "fp8_recipe": "delayed"}
CURRENT = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
LAYERS = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
Train = Callable[..., list[float]]


@pytest.fixture
def train(
    config_of: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Train:
    """Train 20 steps in bf16 on one GPU; the losses."""

    def run(name: str, precision: dict[str, Any], **parallel: Any) -> list[float]:
        for variable, value in local_world(0, 1, free_port()).items():
            monkeypatch.setenv(variable, value)
        config = config_of(
            parallel=parallel | {"use_distributed_optimizer": True},
            precision={"params_dtype": "bf16"} | precision,
            checkpoint={"keep": 9},
        )
        assert train_experiment(resolve_inputs(config), tmp_path / name)
        rows = read_json_lines(tmp_path / name / "metrics.jsonl")
        return [row["loss"] for row in rows if "loss" in row]

    return run


@pytest.mark.parametrize(
    "precision",
    [
        DELAYED,
        CURRENT,
        CURRENT | {"first_last_layers_bf16": True},
        CURRENT | {"fp8_param_gather": True},
        DELAYED | {"fp8_param_gather": True},
    ],
    ids=["delayed", "current", "ends in bf16", "current, parameters", "delayed, parameters"],
)
def test_fp8_trains_as_bf16(train: Train, precision: dict[str, Any]) -> None:
    plain, fp8 = train("bf16", {}), train("fp8", precision)
    assert fp8 != plain, "FP8 was not on"
    assert fp8[0] == pytest.approx(plain[0], rel=5e-3)
    assert fp8[-1] == pytest.approx(plain[-1], rel=2e-2)


@pytest.mark.parametrize("precision", [{}, DELAYED, CURRENT], ids=["bf16", "delayed", "current"])
def test_a_resumed_run_has_the_losses_of_the_whole_one(
    train: Train, tmp_path: Path, precision: dict[str, Any]
) -> None:
    whole = train("run", precision)
    (tmp_path / "run" / "manifest.json").unlink()
    for step in (16, 20):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        folder.rename(tmp_path / folder.name)
    resumed = train("run", precision)
    assert resumed[8:] == pytest.approx(whole[8:], rel=1e-3)


@pytest.mark.parametrize("parallel", [LAYERS, {"cuda_graph_impl": "local"}], ids=["recompute", "graphs"])
def test_the_same_losses_with_less_memory_or_fewer_launches(train: Train, parallel: dict[str, Any]) -> None:
    plain, other = train("plain", {}), train("other", {}, **parallel)
    assert other == pytest.approx(plain, rel=1e-3)
    assert math.isfinite(other[-1])
