"""The stand-in Adam steps as torch's AdamW and has the groups and state of Transformer Engine's."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

from megatron_mathcpt.train.fused_adam import FusedAdam

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
    assert ours.param_groups[0]["step"] == 5
    assert set(ours.state[first[0]]) == {"exp_avg", "exp_avg_sq"}


def keys_of_group(path: Path) -> set[str]:
    """The `k` of every `group["k"]` in a file's source."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "group"
        and isinstance(node.slice, ast.Constant)
    }


def test_groups_hold_all_that_transformer_engine_reads() -> None:
    """A checkpoint that was written here goes on with the fused Adam on a GPU."""
    parameter = torch.ones(2, requires_grad=True)
    optimizer = FusedAdam([parameter], 0.1)
    parameter.grad = torch.ones(2)
    optimizer.step()
    (group,) = optimizer.state_dict()["param_groups"]
    assert set(group) >= READ_BY_STEP
    assert (group["bias_correction"], group["step"]) == (True, 1)


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="no Transformer Engine here"
)
def test_those_are_all_the_keys_of_the_installed_one() -> None:
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "pytorch" / "optimizers" / "fused_adam.py"
    assert keys_of_group(source) <= READ_BY_STEP
