"""Redirect the CUDA calls that are hardwired in Megatron-Core to the CPU, in a process without a GPU.

No setting avoids them: without these patches not even a one-process step runs. Each is needed: without it a
run failed, with megatron-core 0.16.1 and 0.19.2.
"""

import functools
import logging
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._device import _device_constructors

from megatron_mathcpt.device import on_gpu

# The factories that Megatron-Core calls with a CUDA device: masks, token counters, optimizer flags, buffers.
_WITH_LIKE = ("zeros", "ones", "empty", "full", "rand", "randn")
_FACTORIES = ("tensor", "arange", *_WITH_LIKE, *(f"{name}_like" for name in _WITH_LIKE))
_CPU = torch.device("cpu")
_TENSOR_TYPE: Callable[..., torch.Tensor | str] = torch.Tensor.type


class _Stream(AbstractContextManager["_Stream"]):
    """Replaces `torch.cuda.Stream` and `Event`: a call on the CPU is complete when it returns."""

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    __init__ = __exit__ = _nothing
    synchronize = wait = record = wait_stream = wait_event = record_event = _nothing

    def query(self) -> bool:
        return True


def use_cpu() -> None:
    """Make Megatron-Core run on the CPU, unless `on_gpu`; call it before Megatron-Core is imported."""
    if on_gpu() or getattr(torch.cuda, "_mathcpt_cpu", False):
        return
    torch.cuda._mathcpt_cpu = True  # type: ignore[attr-defined]
    # Megatron-Core's fusions are torch.compile's. They gain nothing on a CPU, where building them takes 8 to
    # 10 s, and importing what would build them one.
    torch.compile = _as_it_is
    # It warns of each missing GPU library and falls back to torch, as intended.
    warnings.filterwarnings("ignore", category=Warning, module=r"megatron\.core")
    # It calls collectives by old names, and saves in types that newer torch deprecates.
    callers = r"torch\.distributed\.(c10d_logger|checkpoint)"
    warnings.filterwarnings("ignore", category=FutureWarning, module=callers)
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    _patch_torch()
    _patch_megatron()


def _as_it_is(model: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    return (lambda function: function) if model is None else model


def _patch_torch() -> None:
    # `with torch.device(...)`, which transformers loads models under, compares factories by identity and
    # caches them at its first use: fill the cache with the originals.
    _device_constructors()
    # One by one: a `TorchFunctionMode` is not active in the recomputation of activations inside backward.
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    torch.Tensor.type = _cuda_type  # type: ignore[assignment,method-assign]
    cuda: Any = torch.cuda  # its functions are assigned to
    cuda.is_available = lambda: False  # as it is without a GPU: Megatron-Core does not mind
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

    # The tracker of random states calls these in every attention layer, even without dropout.
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # If Transformer Engine can be imported, as on a login node, these modules have picked its CUDA kernels.
    for module in (clip_grads, mixed_precision):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: object, **kwargs: object) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)  # an error without a GPU
        return factory(*args, **kwargs)

    return on_cpu


def _cuda_type(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor | str:
    """`Tensor.type()` with CUDA's names, which Megatron-Core's optimizers compare with."""
    found = _TENSOR_TYPE(self, *args, **kwargs)  # with arguments it converts the tensor
    return re.sub(r"^torch\.", "torch.cuda.", found) if isinstance(found, str) else found
