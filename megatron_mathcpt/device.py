"""The device of this process: what MATHCPT_DEVICE (cuda or cpu) says, else a GPU where torch sees one.

Job scripts and the launcher say what they expect: a process that then finds no GPU ends, where it would
otherwise train a model on its CPU, or wait for processes on another back end.
"""

import os
import socket

import torch

from megatron_mathcpt.errors import DeviceError, one_line

VARIABLE = "MATHCPT_DEVICE"


def on_gpu() -> bool:
    """Whether this process works on a GPU, the one numbered LOCAL_RANK.

    Raises `DeviceError` if one is expected and torch sees none, or none of that number.
    """
    expected = os.environ.get(VARIABLE)
    if expected not in (None, "cuda", "cpu"):
        raise DeviceError(f"{VARIABLE}={expected}: must be cuda or cpu")
    if expected == "cpu":
        return False
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number, here = int(os.environ.get("LOCAL_RANK", "0")), socket.gethostname()
    if expected == "cuda" and not seen:
        raise DeviceError(
            f"{here}: a GPU is expected ({VARIABLE}=cuda), but torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}, sees none: {_reason()} (CUDA 13 needs an NVIDIA driver of R580 or newer, "
            f"CUDA 12 of R525; {VARIABLE}=cpu asks for the CPU)"
        )
    if seen and number >= seen:
        raise DeviceError(
            f"{here}: torch sees {seen} GPUs, none for local rank {number}; start one process a GPU, and let "
            f"each see all GPUs of its node ({VARIABLE}=cpu asks for the CPU)"
        )
    return seen > 0


def _reason() -> str:
    """What torch says when it is asked for a GPU that it does not see."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        return one_line(str(error))
    return "no device"
