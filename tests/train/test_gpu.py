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
BLOCKWISE = {"fp8": "e4m3", "fp8_recipe": "blockwise"}
LAYERS = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
Train = Callable[..., list[float]]


@pytest.fixture
def train(
    config_of: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Train:
    """Train 20 steps in bf16 on one GPU; the losses."""

    def run(name: str, precision: dict[str, Any], sections: dict[str, Any] | None = None) -> list[float]:
        for variable, value in local_world(0, 1, free_port()).items():
            monkeypatch.setenv(variable, value)
        given = sections or {}
        config = config_of(
            **given
            | {
                "parallel": {"use_distributed_optimizer": True} | given.get("parallel", {}),
                "precision": {"params_dtype": "bf16"} | precision,
                "checkpoint": {"keep": 9} | given.get("checkpoint", {}),
            }
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
        BLOCKWISE,
        CURRENT | {"first_last_layers_bf16": True},
        CURRENT | {"fp8_param_gather": True},
        DELAYED | {"fp8_param_gather": True},
    ],
    ids=["delayed", "current", "blockwise", "ends in bf16", "current, parameters", "delayed, parameters"],
)
def test_fp8_trains_as_bf16(train: Train, precision: dict[str, Any]) -> None:
    plain, fp8 = train("bf16", {}), train("fp8", precision)
    assert fp8 != plain, "FP8 was not on"
    assert fp8[0] == pytest.approx(plain[0], rel=5e-3)
    assert fp8[-1] == pytest.approx(plain[-1], rel=2e-2)


@pytest.mark.parametrize("beside", [False, True], ids=["saved", "saved beside the steps"])
@pytest.mark.parametrize(
    "precision",
    [{}, DELAYED, CURRENT, DELAYED | {"fp8_param_gather": True}],
    ids=["bf16", "delayed", "current", "delayed, parameters"],
)
def test_a_resumed_run_has_the_losses_of_the_whole_one(
    train: Train, tmp_path: Path, precision: dict[str, Any], beside: bool
) -> None:
    saves = {"checkpoint": {"async_save": beside}}
    whole = train("run", precision, saves)
    (tmp_path / "run" / "manifest.json").unlink()
    for step in (16, 20):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        folder.rename(tmp_path / folder.name)
    resumed = train("run", precision, saves)
    assert resumed[8:] == pytest.approx(whole[8:], rel=1e-3)


SAME = {
    "recompute": {"parallel": LAYERS},
    "graphs": {"parallel": {"cuda_graph_impl": "local"}},
    "unfused gradients": {"parallel": {"gradient_accumulation_fusion": False}},
    "fused loss": {"parallel": {"cross_entropy_loss_fusion": True}},
    "gradients in bf16": {"parallel": {"grad_reduce_in_fp32": False}},
    "small state": {"optimizer": {"use_precision_aware_optimizer": True}},
}


@pytest.mark.parametrize("change", list(SAME))
def test_the_same_losses_with_less_memory_or_fewer_launches(train: Train, change: str) -> None:
    plain, other = train("plain", {}), train("other", {}, SAME[change])
    assert other == pytest.approx(plain, rel=1e-3)
    assert math.isfinite(other[-1])


def test_moments_in_bf16_train_nearly_the_same(train: Train) -> None:
    small = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
    plain, other = train("plain", {}), train("other", {}, {"optimizer": small})
    assert other != plain
    assert other == pytest.approx(plain, rel=1e-2)


def test_documents_attend_within_themselves_as_on_the_cpu(train: Train) -> None:
    """Packed kernels and PyTorch's attention under the dense mask train the same; causal trains another."""
    masked = {"data": {"reset_attention_mask": True}}
    causal, packed = train("causal", {}), train("packed", {}, masked)
    assert packed != causal
    from megatron_mathcpt.model import attention, llama

    with pytest.MonkeyPatch.context() as patch:  # the same fused layers around PyTorch's attention
        patch.setattr(llama, "DocumentAttention", UnderMask)
        dense = train("dense", {}, masked)
    assert packed == pytest.approx(dense, rel=2e-3)
    assert attention.DocumentAttention is not UnderMask


class UnderMask(torch.nn.Module):
    """PyTorch's attention under the dense mask that the packed description stands for."""

    def __init__(self, config: Any, layer_number: int, **kwargs: Any) -> None:
        super().__init__()
        from megatron_mathcpt.model.attention import SdpaAttention

        self.inner = SdpaAttention(config, layer_number, **kwargs)

    def forward(
        self, query: Any, key: Any, value: Any, mask: Any, *, packed_seq_params: Any, **_: Any
    ) -> torch.Tensor:
        from megatron_mathcpt.model.documents import forbidden

        length, rows = query.shape[:2]
        ends = packed_seq_params.spans[0].query_ends[1:].long()
        numbers = torch.bucketize(torch.arange(length * rows, device=ends.device), ends, right=True)
        output: torch.Tensor = self.inner(query, key, value, forbidden(numbers.view(rows, length)))
        return output
