"""Which device a process works on, and that none trains on a CPU when it should expect a GPU."""

from contextlib import nullcontext

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.device import VARIABLE, on_gpu
from megatron_mathcpt.errors import DeviceError


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_an_expected_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert on_gpu() is False
    none = r"a GPU is expected .* torch 2\..* sees none: .*(CUDA|NVIDIA)"
    for value, message in ("cuda", none), ("gpu", "MATHCPT_DEVICE=gpu: must be cuda or cpu"):
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(DeviceError, match=message):
            on_gpu()


@pytest.mark.parametrize(("device", "gpu"), [("", True), ("cuda", True), ("cpu", False)])
def test_where_torch_sees_two_gpus(monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(VARIABLE, device)
    if not device:
        monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert on_gpu() is gpu
    monkeypatch.setenv("LOCAL_RANK", "2")
    message = r"rank 9: torch sees 2 GPUs, none for local rank 2, 3 needed here.*set MATHCPT_DEVICE=cpu"
    monkeypatch.setenv("RANK", "9")
    with pytest.raises(DeviceError, match=message) if gpu else nullcontext():
        on_gpu()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # else it would wait for the six that have none
    message = "rank 9: torch sees 2 GPUs, 8 needed here"
    with pytest.raises(DeviceError, match=message) if gpu else nullcontext():
        on_gpu()


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
