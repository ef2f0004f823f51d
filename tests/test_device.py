"""Which device a process works on, and that none trains on a CPU when it was told to expect a GPU."""

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.errors import DeviceError


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_an_expected_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MATHCPT_DEVICE", raising=False)
    assert on_gpu() is False
    monkeypatch.setenv("MATHCPT_DEVICE", "cuda")
    with pytest.raises(DeviceError, match=r"a GPU is expected .* torch 2\..* sees none: .*(CUDA|NVIDIA)"):
        on_gpu()


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATHCPT_DEVICE", "gpu")
    with pytest.raises(DeviceError, match="MATHCPT_DEVICE=gpu: must be cuda or cpu"):
        on_gpu()


@pytest.mark.parametrize(
    ("visible", "device", "gpu"), [(2, None, True), (2, "cuda", True), (2, "cpu", False)]
)
def test_where_torch_sees_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: int, device: str | None, gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setenv("LOCAL_RANK", "1")
    if device is None:
        monkeypatch.delenv("MATHCPT_DEVICE", raising=False)
    else:
        monkeypatch.setenv("MATHCPT_DEVICE", device)
    assert on_gpu() is gpu
    monkeypatch.setenv("LOCAL_RANK", str(visible))
    if gpu:
        with pytest.raises(
            DeviceError, match=r"torch sees 2 GPUs, none for local rank 2.*MATHCPT_DEVICE=cpu asks"
        ):
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
