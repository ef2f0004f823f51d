"""What only a GPU with Transformer Engine can do: FP8, overlapped tensor parallelism."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.process import free_port, local_world
from tests.support.training_outputs import losses_of, rewind
from tests.support.training_runs import ConfigOf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
    ),
]
BASE = {
    "parallel": {"use_distributed_optimizer": True},
    "precision": {"params_dtype": "bf16"},
    "checkpoint": {"keep": 9},
}
DELAYED = {"fp8": "hybrid", "fp8_recipe": "delayed"}
CURRENT = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
BLOCKWISE = {"fp8": "e4m3", "fp8_recipe": "blockwise"}
FP8: dict[str, dict[str, Any]] = {
    "delayed": DELAYED,
    "current": CURRENT,
    "blockwise": BLOCKWISE,
    "ends in bf16": CURRENT | {"first_last_layers_bf16": True},
    "current, parameters": CURRENT | {"fp8_param_gather": True},
    "delayed, parameters": DELAYED | {"fp8_param_gather": True},
    "blockwise, parameters": BLOCKWISE | {"fp8_param_gather": True},
}
LAYERS = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SMALL = {"use_precision_aware_optimizer": True}
SAME = {  # and how closely
    "recompute": ({"parallel": LAYERS}, 1e-3),
    "unfused gradients": ({"parallel": {"gradient_accumulation_fusion": False}}, 1e-3),
    "fused loss": ({"parallel": {"cross_entropy_loss_fusion": True}}, 1e-3),
    "gradients in bf16": ({"parallel": {"grad_reduce_in_fp32": False}}, 1e-3),
    "small state": ({"optimizer": SMALL}, 1e-3),
    "moments in bf16": ({"optimizer": SMALL | {"exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}}, 1e-2),
}
Train = Callable[..., list[float]]


def trained(config_of: ConfigOf, folder: Path, **sections: dict[str, Any]) -> list[float]:
    """Losses of 20 steps in bf16 on one GPU, some fields replaced."""
    merged = {name: fields | sections.get(name, {}) for name, fields in BASE.items()}
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in local_world(0, 1, free_port()).items():
            patch.setenv(variable, value)
        assert train_experiment(resolve_inputs(config_of(**sections | merged)), folder)
    return losses_of(folder)


@pytest.fixture(scope="module")
def plain(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return trained(config_of, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def train(config_of: ConfigOf, tmp_path: Path) -> Train:
    """`train(name, section={field: value})`: the losses of a run in a folder of that name."""
    return lambda name, **sections: trained(config_of, tmp_path / name, **sections)


@pytest.mark.parametrize("name", list(FP8))
def test_fp8_trains_as_bf16(train: Train, plain: list[float], name: str) -> None:
    fp8 = train("fp8", precision=FP8[name])
    assert fp8 != plain, "FP8 was not on"
    assert fp8[0] == pytest.approx(plain[0], rel=5e-3)
    assert fp8[-1] == pytest.approx(plain[-1], rel=2e-2)


@pytest.mark.parametrize("async_save", [False, True], ids=["saved", "saved asynchronously"])
@pytest.mark.parametrize("name", ["bf16", "delayed", "current", "delayed, parameters"])
def test_a_resumed_run_has_the_same_losses(train: Train, tmp_path: Path, name: str, async_save: bool) -> None:
    saves = {"checkpoint": {"async_save": async_save}, "train": {"deterministic": True}}
    whole = train("run", precision=FP8.get(name, {}), **saves)
    rewind(tmp_path / "run", 8)
    resumed = train("run", precision=FP8.get(name, {}), **saves)
    assert resumed[8:] == whole[8:], [new / old - 1 for new, old in zip(resumed, whole, strict=True)]


@pytest.mark.parametrize("change", list(SAME))
def test_the_same_losses_with_less_memory_or_fewer_launches(
    train: Train, plain: list[float], change: str
) -> None:
    sections, near = SAME[change]
    other = train("other", **sections)
    assert other == pytest.approx(plain, rel=near)
    assert "moments" not in change or other != plain


def test_the_gate_takes_the_weights_of_a_hugging_face_folder(train: Train, hf: Path) -> None:
    """transformers computes its loss on this GPU, in fp32; ours is bf16."""
    init = {"scratch": False, "hf": str(hf), "initial_loss": "transformers", "initial_loss_band": 0.01}
    train("run", logging={"loss_by_source": True}, init=init)  # the gate does not ask for losses by source


def test_deterministic_runs_are_the_same_to_the_bit(train: Train) -> None:
    first, second = (train(name, train={"deterministic": True}) for name in ("first", "second"))
    assert first == second


def test_documents_attend_within_themselves_as_on_the_cpu(train: Train, plain: list[float]) -> None:
    """Packed kernels and PyTorch's attention by document train the same; causal trains another."""
    packed = train("packed", data={"reset_attention_mask": True})
    assert packed != plain
    from megatron_mathcpt.model import attention, language_model

    with pytest.MonkeyPatch.context() as patch:  # the same fused layers around PyTorch's attention
        patch.setattr(language_model, "DocumentAttention", attention.SdpaAttention)
        dense = train("dense", data={"reset_attention_mask": True})
    assert packed == pytest.approx(dense, rel=2e-3)
