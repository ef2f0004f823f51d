"""Local worker processes, and the environment in which a worker joins the others; no torch.

torchrun loses the workers' exit status and, on SIGUSR1, the workers: `--processes N` starts them here
instead. Under torchrun or srun the process is a worker already.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from megatron_mathcpt.train.signals import STOP_SIGNALS

# What torchrun calls by the names on the left; the launch script sets MASTER_ADDR and MASTER_PORT.
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_POLL_SECONDS = 0.05
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_GPU_THREADS = 8  # at most, for a process that has a GPU
_GRACE_SECONDS = 10.0  # for the others after one worker failed: they may still print why


def joined_world(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Rank and sizes if a launcher started this process (torchrun, srun with MASTER_ADDR), else None."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {}
    if "SLURM_PROCID" in environment and "MASTER_ADDR" in environment:
        return {name: environment[slurm] for name, slurm in _SLURM.items()}
    return None


def local_world(rank: int, size: int, port: int) -> dict[str, str]:
    """Environment of local worker `rank` of `size`; what the caller's own environment says of it stands.

    Where an NVIDIA driver is loaded workers are told to expect a GPU (device.py).
    """
    world = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    wishes = {"OMP_NUM_THREADS": "1"}
    if expects_gpu(os.environ):
        wishes = {
            "MATHCPT_DEVICE": "cuda",
            # Megatron-Core orders tensor-parallel communication by it.
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "OMP_NUM_THREADS": str(max(1, min(_GPU_THREADS, (os.cpu_count() or 1) // size))),
        }
    return world | {name: os.environ.get(name, wish) for name, wish in wishes.items()}


def expects_gpu(environment: Mapping[str, str]) -> bool:
    """Whether workers started here should find a GPU: as MATHCPT_DEVICE says, else if a driver is loaded."""
    if "MATHCPT_DEVICE" in environment:
        return environment["MATHCPT_DEVICE"] == "cuda"
    return environment.get("CUDA_VISIBLE_DEVICES") != "" and _NVIDIA_DRIVER.exists()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on.

    It lies below the range from which Linux numbers outgoing connections (32768 on), so that no connection
    takes it before the process it is meant for listens.
    """
    while True:
        port = random.SystemRandom().randint(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_workers(module: str, arguments: Sequence[str], processes: int) -> int:
    """Run `python -m module arguments` as `processes` local workers; the first failing exit status, or 0.

    Stop signals are passed on. When a worker fails, the others get a short grace and are killed; when
    this process is killed, the workers end too (`die_with_parent`).
    """
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **local_world(rank, processes, port), "MATHCPT_LAUNCHER": str(os.getpid())},
        )
        for rank in range(processes)
    ]
    for number in STOP_SIGNALS:
        signal.signal(number, partial(_pass_on, workers))
    try:
        return _wait(workers)
    finally:
        for worker in workers:
            worker.kill()


def _pass_on(workers: list[subprocess.Popen[bytes]], number: int, _: FrameType | None) -> None:
    for worker in workers:
        worker.send_signal(number)


def _wait(workers: list[subprocess.Popen[bytes]]) -> int:
    deadline = None
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((code for code in codes if code), None)
        if None not in codes:
            return 0 if failed is None else exit_status(failed)
        if failed is not None:
            deadline = deadline or time.monotonic() + _GRACE_SECONDS
            if time.monotonic() > deadline:
                return exit_status(failed)
        time.sleep(_POLL_SECONDS)


def exit_status(code: int) -> int:
    """A child's return code as an exit status: killed by signal n is 128 + n, as in a shell."""
    return 128 - code if code < 0 else code


def die_with_parent() -> None:
    """Have the kernel kill this worker when its launcher dies, so none is left behind (prctl(2))."""
    launcher = os.environ.get("MATHCPT_LAUNCHER")
    if launcher is None or sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(launcher):
        sys.exit(128 + signal.SIGKILL)
