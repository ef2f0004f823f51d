"""The CPU stand-ins: an Adam with FusedAdam's state that steps as torch's AdamW, and harmless patches."""

import pytest
import torch

from megatron_mathcpt.cpu import FusedAdam, use_cpu


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_calls_land_on_the_cpu() -> None:
    use_cpu()
    use_cpu()
    assert torch.zeros(2, device="cuda", pin_memory=True).device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.tensor([1.0], device="cuda:0").type() == "torch.cuda.FloatTensor"
    assert not torch.cuda.is_available()
    with torch.device("meta"):
        assert torch.empty(3).device.type == "meta", "transformers loads models under this context"
