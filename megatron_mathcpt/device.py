"""The device of this process: MATHCPT_DEVICE (cuda or cpu) if it is set, else a GPU if torch sees one.

Job scripts and the launcher set it, so that a process that expects a GPU and finds none exits instead of
training on its CPU, or waiting for the other processes on another backend.
"""

import os
import socket

import torch

from megatron_mathcpt.errors import DeviceError, one_line

VARIABLE = "MATHCPT_DEVICE"


def on_gpu() -> bool:
    """Whether this process uses a GPU, number LOCAL_RANK; `DeviceError` if an expected one is missing."""
    expected = os.environ.get(VARIABLE)
    if expected not in (None, "cuda", "cpu"):
        raise DeviceError(f"{VARIABLE}={expected}: must be cuda or cpu")
    if expected == "cpu":
        return False
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number, host = int(os.environ.get("LOCAL_RANK", "0")), socket.gethostname()
    if expected == "cuda" and not seen:
        raise DeviceError(
            f"{host}: a GPU is expected ({VARIABLE}=cuda), but torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}, sees none: {_cuda_error()} (CUDA 13 needs an NVIDIA driver of R580 or "
            f"newer, CUDA 12 of R525; set {VARIABLE}=cpu to use the CPU)"
        )
    if seen and number >= seen:
        raise DeviceError(
            f"{host}: torch sees {seen} GPUs, none for local rank {number}; start one process per GPU, and "
            f"let each see all GPUs of its node (set {VARIABLE}=cpu to use the CPU)"
        )
    return seen > 0


def _cuda_error() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        return one_line(str(error))
    return "no device"
