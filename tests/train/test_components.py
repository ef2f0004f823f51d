"""Parts of a run that need hardware this machine has not, by stand-ins, and the stand-in Adam."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.train.fused_adam import FusedAdam
from tests.train.conftest import ConfigOf


@pytest.mark.parametrize("overlapped", [False, True])
def test_fp8_weights_are_processed_after_a_forced_gather(
    monkeypatch: pytest.MonkeyPatch, overlapped: bool
) -> None:
    """Megatron-Core leaves it to the caller; their transposes would be those of the step before."""
    use_cpu()
    from megatron_mathcpt.train import components

    calls: list[Any] = []
    chunk = torch.nn.Linear(2, 2)  # its weight stands for an FP8 one, its bias is bf16 there
    chunk.start_param_sync = lambda force_sync: calls.append(("gathered", force_sync))  # type: ignore[assignment]
    monkeypatch.setattr(components, "is_float8tensor", lambda tensor: tensor is chunk.weight)
    monkeypatch.setattr(components, "post_all_gather_processing", calls.append)
    parallel = SimpleNamespace(overlap_param_gather=overlapped)
    components.gather_parameters(
        SimpleNamespace(config=SimpleNamespace(parallel=parallel), model=[chunk])  # type: ignore[arg-type]
    )
    assert calls == ([("gathered", True), [chunk.weight]] if overlapped else [])


def test_a_smaller_optimizer_state_is_refused_without_transformer_engine(
    config_of: ConfigOf,
) -> None:
    use_cpu()
    from megatron_mathcpt.train import components

    config = config_of(
        optimizer={"use_precision_aware_optimizer": True}, parallel={"use_distributed_optimizer": True}
    )
    with pytest.raises(ConfigError, match=r"^optimizer\.use_precision_aware_optimizer: needs a GPU"):
        components.check_machine(config, SimpleNamespace(), Path())  # type: ignore[arg-type]


# Of transformer_engine/pytorch/optimizers/fused_adam.py, release 2.12, read by `step`.
READ_BY_STEP = {"params", "bias_correction", "betas", "lr", "eps", "step", "weight_decay"}


def test_fused_adam_steps_as_adamw() -> None:
    torch.manual_seed(0)
    first = [torch.randn(5, 3, requires_grad=True), torch.randn(7, requires_grad=True)]
    second = [parameter.detach().clone().requires_grad_() for parameter in first]
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours, theirs = FusedAdam(first, **settings), torch.optim.AdamW(second, **settings)  # type: ignore[arg-type]
    for _ in range(5):
        for mine, other in zip(first, second, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for mine, other in zip(first, second, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    # A checkpoint that was written here goes on with the fused Adam on a GPU.
    assert ours.state_dict()["param_groups"][0].keys() >= READ_BY_STEP
    assert (ours.param_groups[0]["bias_correction"], ours.param_groups[0]["step"]) == (True, 5)
    assert set(ours.state[first[0]]) == {"exp_avg", "exp_avg_sq"}


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="no Transformer Engine here"
)
def test_those_are_all_the_keys_of_the_installed_one() -> None:
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "pytorch" / "optimizers" / "fused_adam.py"
    assert set(re.findall(r'\bgroup\["(\w+)"\]', source.read_text())) <= READ_BY_STEP
