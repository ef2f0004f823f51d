"""A run's processes: launch, stop signals, watchdog, determinism; no torch at import.

`--processes N` launches the workers without torchrun, which always exits with status 1 and dies of SIGUSR1,
leaving its workers behind. Under torchrun or srun the process is a worker already.
"""

import ctypes
import faulthandler
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from megatron_mathcpt.device import joined_world
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.own_python import own_command, own_environment

_LAUNCHER = "MATHCPT_LAUNCHER"  # PID of the process that started this worker
# Of a worker; also Slurm's and MPI's, which `sbatch` would pass to the job that it submits.
_WORLD = re.compile(
    r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|MATHCPT_LAUNCHER|(OMPI_COMM_WORLD|PMIX?|MV2_COMM_WORLD)_\w+"
    r"|SLURM_(STEP\w+|PROCID|LOCALID|NTASKS|NPROCS)"
)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # preemption sends the first, `sbatch --signal` the second
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_GPU_THREADS = 8  # at most, per process with a GPU
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # after one worker failed, for the others to print their errors
_SUBMIT_SECONDS = 60.0  # for a command that only submits, such as sbatch
STACKS = ".stacks"
# For `train.deterministic`, unless set: by default the order of cuBLAS's and NCCL's sums depends on timing.
# torch demands the first, Megatron-LM the second (megatron/training/arguments.py).
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
logger = get_logger(__name__)


def join_launcher() -> bool:
    """Take rank and sizes from the launcher of this process, and die with it; False if there is none."""
    world = joined_world(os.environ)
    if world is not None:
        os.environ.update(world)
        die_with_parent()
    return world is not None


def expects_gpu() -> bool:
    """Whether this machine's workers expect a GPU (device.py): by MATHCPT_DEVICE, else if it has a driver."""
    seen = _NVIDIA_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    return os.environ.get("MATHCPT_DEVICE", "cuda" if seen else "") == "cuda"


def local_world(rank: int, size: int, port: int) -> dict[str, str]:
    """Environment of local worker `rank` of `size`; what the caller's environment already sets wins."""
    world = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    world |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(size))
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    defaults = {"OMP_NUM_THREADS": "1"}  # else each worker would use all cores
    if expects_gpu():
        defaults["OMP_NUM_THREADS"] = str(max(1, min(_GPU_THREADS, (os.cpu_count() or 1) // size)))
        # Megatron-Core relies on the second for the order of tensor-parallel communication.
        defaults |= {"MATHCPT_DEVICE": "cuda", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    return world | {name: os.environ.get(name, default) for name, default in defaults.items()}


def free_port() -> int:
    """Pick a TCP port of this machine that is not in use."""
    while True:
        # Below Linux's ephemeral ports (32768 and up), which an outgoing connection could take before us.
        port = random.SystemRandom().randint(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_workers(module: str, arguments: Sequence[str], processes: int) -> int:
    """Run `python -m module arguments` as local workers; return the first failing exit status, or 0.

    Stop signals are forwarded. When a worker fails, the others, which would wait for it in a collective, are
    killed after a grace period; when this process is killed, so are they (`die_with_parent`).
    """
    command, port = own_command(["-m", module, *arguments]), free_port()
    worlds = [local_world(rank, processes, port) | {_LAUNCHER: str(os.getpid())} for rank in range(processes)]
    workers = [subprocess.Popen(command, env=own_environment() | world) for world in worlds]

    def forward(number: int, _: object) -> None:
        for worker in workers:
            worker.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    deadline = math.inf
    try:
        while True:
            codes = [worker.poll() for worker in workers]
            failed = next((code for code in codes if code), 0)
            if failed:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
            if None not in codes or time.monotonic() > deadline:
                return 128 - failed if failed < 0 else failed  # killed by signal n is 128 + n, as in a shell
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            worker.kill()


def die_with_parent() -> None:
    """Have the kernel kill this worker when its launcher dies (prctl(2))."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if str(os.getppid()) != launcher:  # it died before the call above
        sys.exit(128 + signal.SIGKILL)


class StopFlag:
    """Catches the stop signals; the loop reads `requested` after each step."""

    def __init__(self) -> None:
        self.requested = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True


@contextmanager
def watchdog(run_folder: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """Dump all stacks and exit if the yielded function is not called for `seconds`, so Slurm can requeue."""
    # A process stopped by SIGSTOP cannot; the others, waiting for it, do, and their exit ends the job.
    path = run_folder / STACKS / f"rank_{int(os.environ['RANK']):05d}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link would be written through
    with path.open("w", encoding="utf-8") as file:
        # faulthandler's C thread needs no interpreter lock: it fires while Python waits in a collective.
        heartbeat = partial(faulthandler.dump_traceback_later, seconds, exit=True, file=file)
        heartbeat()
        try:
            yield heartbeat
        finally:
            faulthandler.cancel_dump_traceback_later()


def set_deterministic(wanted: bool) -> None:
    """Make this process compute deterministically, or not; call before its first use of Megatron-Core."""
    # Megatron-Core's own switch follows torch's (model/settings.py). The fused loss, which Megatron-LM calls
    # non-deterministic, is refused (config/cross_checks.py).
    import torch

    torch.use_deterministic_algorithms(wanted)
    if wanted:
        # A debugging aid that fills new memory with NaN, which FP8 weights would be quantised from.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # Else attention's backward adds blocks in the order in which they finish.
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
        for name, value in _DETERMINISTIC.items():
            os.environ.setdefault(name, value)


def start_evaluation(command: Sequence[str], checkpoint: Path) -> None:
    """Run `command CHECKPOINT`, which submits the evaluation (as sbatch does); its failure is only logged."""
    arguments = [*command, str(checkpoint.resolve())]
    # Without the worker's rank: a torch program would take it for its own, and wait for its peers.
    env = {name: value for name, value in os.environ.items() if not _WORLD.fullmatch(name)}
    try:
        subprocess.run(arguments, env=env, stdin=subprocess.DEVNULL, check=True, timeout=_SUBMIT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s: its evaluation was not started (%s)", checkpoint, error)
