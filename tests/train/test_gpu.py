"""What only a GPU with Transformer Engine can do: FP8, CUDA graphs, overlapped tensor parallelism."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.config.cross_checks import GRAPHS_TRAIN_RIGHT
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.process import free_port, local_world
from tests.train.conftest import ConfigOf, losses_of, write_hf

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


@pytest.fixture(scope="module")
def plain(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of 20 steps in bf16, nothing changed."""
    return trained(config_of, tmp_path_factory.mktemp("plain"), {}, {})


@pytest.fixture
def train(config_of: ConfigOf, tmp_path: Path) -> Train:
    """Train 20 steps in bf16 on one GPU into a folder of that name; the losses."""
    return lambda name, precision, sections=None: trained(
        config_of, tmp_path / name, precision, sections or {}
    )


def trained(
    config_of: ConfigOf, folder: Path, precision: dict[str, Any], sections: dict[str, Any]
) -> list[float]:
    config = config_of(
        **sections
        | {
            "parallel": {"use_distributed_optimizer": True} | sections.get("parallel", {}),
            "precision": {"params_dtype": "bf16"} | precision,
            "checkpoint": {"keep": 9} | sections.get("checkpoint", {}),
        }
    )
    if "init" in sections:  # the starting weights bring their shape
        config = config.model_copy(update={"model": None})
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in local_world(0, 1, free_port()).items():
            patch.setenv(variable, value)
        assert train_experiment(resolve_inputs(config), folder)
    return losses_of(folder)


FP8 = {
    "delayed": DELAYED,
    "current": CURRENT,
    "blockwise": BLOCKWISE,
    "ends in bf16": CURRENT | {"first_last_layers_bf16": True},
    "current, parameters": CURRENT | {"fp8_param_gather": True},
    "delayed, parameters": DELAYED | {"fp8_param_gather": True},
    "blockwise, parameters": BLOCKWISE | {"fp8_param_gather": True},
}


@pytest.mark.parametrize("name", list(FP8))
def test_fp8_trains_as_bf16(train: Train, plain: list[float], name: str) -> None:
    fp8 = train("fp8", FP8[name])
    assert fp8 != plain, "FP8 was not on"
    assert fp8[0] == pytest.approx(plain[0], rel=5e-3)
    assert fp8[-1] == pytest.approx(plain[-1], rel=2e-2)


@pytest.mark.parametrize("beside", [False, True], ids=["saved", "saved beside the steps"])
@pytest.mark.parametrize("name", ["bf16", "delayed", "current", "delayed, parameters"])
def test_a_resumed_run_has_the_losses_of_the_whole_one(
    train: Train, tmp_path: Path, name: str, beside: bool
) -> None:
    precision = FP8.get(name, {})
    saves = {"checkpoint": {"async_save": beside}, "train": {"deterministic": True}}
    whole = train("run", precision, saves)
    (tmp_path / "run" / "manifest.json").unlink()
    for step in (16, 20):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        folder.rename(tmp_path / folder.name)
    resumed = train("run", precision, saves)
    assert resumed[8:] == whole[8:], [
        after / before - 1 for after, before in zip(resumed, whole, strict=True)
    ]


SAME = {
    "recompute": {"parallel": LAYERS},
    "graphs": {"parallel": {"cuda_graph_impl": "local"}},
    "graphs, unfused gradients": {
        "parallel": {"cuda_graph_impl": "local", "gradient_accumulation_fusion": False}
    },
    "unfused gradients": {"parallel": {"gradient_accumulation_fusion": False}},
    "fused loss": {"parallel": {"cross_entropy_loss_fusion": True}},
    "gradients in bf16": {"parallel": {"grad_reduce_in_fp32": False}},
    "small state": {"optimizer": {"use_precision_aware_optimizer": True}},
}


@pytest.mark.parametrize("change", list(SAME))
def test_the_same_losses_with_less_memory_or_fewer_launches(
    train: Train, plain: list[float], change: str, request: pytest.FixtureRequest
) -> None:
    if "graphs" in change:
        request.applymarker(pytest.mark.xfail(not GRAPHS_TRAIN_RIGHT, reason="seen on an H100", strict=True))
    other = train("other", {}, SAME[change])
    assert other == pytest.approx(plain, rel=1e-3)


def test_the_gate_takes_the_weights_of_a_hugging_face_folder(config_of: ConfigOf, tmp_path: Path) -> None:
    """transformers computes its loss on this GPU, in fp32; ours is bf16."""
    hf = str(write_hf(tmp_path / "hf"))
    init = {"scratch": False, "hf": hf, "initial_loss": "transformers", "initial_loss_band": 0.01}
    # The gate does not ask for losses by source.
    trained(config_of, tmp_path / "run", {}, {"logging": {"loss_by_source": True}, "init": init})


def test_deterministic_runs_are_the_same_to_the_bit(train: Train) -> None:
    wanted = {"train": {"deterministic": True}}
    assert train("first", {}, wanted) == train("second", {}, wanted)


def test_moments_in_bf16_train_nearly_the_same(train: Train, plain: list[float]) -> None:
    small = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
    other = train("other", {}, {"optimizer": small})
    assert other != plain
    assert other == pytest.approx(plain, rel=1e-2)


def test_documents_attend_within_themselves_as_on_the_cpu(train: Train, plain: list[float]) -> None:
    """Packed kernels and PyTorch's attention under the dense mask train the same; causal trains another."""
    masked = {"data": {"reset_attention_mask": True}}
    packed = train("packed", {}, masked)
    assert packed != plain
    from megatron_mathcpt.model import llama

    with pytest.MonkeyPatch.context() as patch:  # the same fused layers around PyTorch's attention
        patch.setattr(llama, "DocumentAttention", UnderMask)
        dense = train("dense", {}, masked)
    assert packed == pytest.approx(dense, rel=2e-3)


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
