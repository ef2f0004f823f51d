"""The CPU stand-ins of CUDA's calls are harmless elsewhere."""

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu


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
