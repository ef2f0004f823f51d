"""The CUDA calls that Megatron-Core hardwires, sent to the CPU; applied only to a process that has no GPU.

Each group was found by leaving it out and watching a run fail, with megatron-core 0.16.1 and 0.19.2. The
factories are wrapped one by one, since a `TorchFunctionMode` is not active in the recomputation that runs
inside backward. `torch.cuda.is_available()` is False from then on, as it is without a GPU.
"""

import functools
import logging
import os
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._device import _device_constructors

from megatron_mathcpt.device import on_gpu

_WITH_LIKE = ("zeros", "ones", "empty", "full", "rand", "randn")
_FACTORIES = ("tensor", "arange", *_WITH_LIKE, *(f"{name}_like" for name in _WITH_LIKE))
_CPU = torch.device("cpu")


class _Stream(AbstractContextManager["_Stream"]):
    """Stands for `torch.cuda.Stream` and `Event`: work on the CPU is done when the call returns."""

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    __init__ = __exit__ = _nothing
    synchronize = wait = record = wait_stream = wait_event = record_event = _nothing

    def query(self) -> bool:
        return True


def use_cpu() -> None:
    """Make Megatron-Core run on the CPU in this process, unless `on_gpu`; raises `DeviceError` as that does.

    Call it before the first use of Megatron-Core, as often as you like.
    """
    if on_gpu() or getattr(torch.cuda, "_mathcpt_cpu", False):
        return
    torch.cuda._mathcpt_cpu = True  # type: ignore[attr-defined]
    # The fusions that torch.compile would build cost seconds at start and gain nothing on a CPU.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Megatron-Core warns of each missing GPU library; that it falls back to torch is the point here.
    warnings.filterwarnings("ignore", category=Warning, module=r"megatron\.core")
    # It calls collectives by names that newer torch has renamed, and saves in types it gives up.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed\.(c10d_logger|checkpoint)"
    )
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    _patch_torch()
    _patch_megatron()


def _patch_torch() -> None:
    # `with torch.device(...)`, which transformers loads models under, knows the factories by identity and
    # looks them up at its first use: it must see the originals.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    torch.Tensor.type = _type_of(torch.Tensor.type)  # type: ignore[assignment,method-assign]
    cuda: Any = torch.cuda
    cuda.is_available = lambda: False
    cuda.device_count = lambda: 0
    cuda.current_device = lambda: _CPU
    cuda.synchronize = lambda *_: None
    cuda.set_device = lambda *_: None
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = cuda.stream = _Stream
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed


def _patch_megatron() -> None:
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads
    from megatron.core.optimizer import optimizer as mixed_precision
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # Where Transformer Engine can be imported, as on a login node, its kernels were taken.
    for module in (clip_grads, mixed_precision):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return on_cpu


def _type_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.type()` with CUDA's names, which Megatron-Core's optimizers compare with."""

    def type_of(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        return found if args or kwargs else re.sub(r"^torch\.", "torch.cuda.", found)

    return type_of
