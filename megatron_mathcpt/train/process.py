"""A run's processes: started, stopped, watched, kept apart, told to be deterministic; no torch at import.

torchrun loses the workers' exit status and, on SIGUSR1, the workers: `--processes N` starts them here
instead. Under torchrun or srun the process is a worker already.
"""

import ctypes
import faulthandler
import fcntl
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.log import get_logger

# What torchrun calls by the names on the left; the launch script sets MASTER_ADDR and MASTER_PORT.
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_LAUNCHER = "MATHCPT_LAUNCHER"  # the process that started this worker
_WORLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", _LAUNCHER)  # of a worker
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # schedulers and launchers use either
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_GPU_THREADS = 8  # at most, for a process that has a GPU
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # for the others after one worker failed: they may still print why
_LOCK_SECONDS = 5.0  # for the workers of a killed job, which the kernel is about to end
_EVALUATION_SECONDS = 60.0  # to hand the work on
STACKS = ".stacks"
# For `train.deterministic`; kept as they are where they are set. Left to themselves, sums of cuBLAS and NCCL
# may depend on timing. torch asks for the first, Megatron-LM for the second (megatron/training/arguments.py).
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
logger = get_logger(__name__)


def joined_world(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Rank and sizes if a launcher started this process (torchrun, srun with MASTER_ADDR), else None."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {}
    if "SLURM_PROCID" in environment and "MASTER_ADDR" in environment:
        return {name: environment[slurm] for name, slurm in _SLURM.items()}
    return None


def local_world(rank: int, size: int, port: int) -> dict[str, str]:
    """Environment of local worker `rank` of `size`; what the caller's own environment says of it stands.

    Workers are told to expect a GPU (device.py) if MATHCPT_DEVICE says so, or else if a driver is loaded.
    """
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    seen = _NVIDIA_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    wishes = {"OMP_NUM_THREADS": "1"}
    if os.environ.get("MATHCPT_DEVICE", "cuda" if seen else "") == "cuda":
        wishes = {
            "MATHCPT_DEVICE": "cuda",
            # Megatron-Core orders tensor-parallel communication by it.
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "OMP_NUM_THREADS": str(max(1, min(_GPU_THREADS, (os.cpu_count() or 1) // size))),
        }
    return world | {name: os.environ.get(name, wish) for name, wish in wishes.items()}


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
    command, port = [sys.executable, "-m", module, *arguments], free_port()
    worlds = [local_world(rank, processes, port) | {_LAUNCHER: str(os.getpid())} for rank in range(processes)]
    workers = [subprocess.Popen(command, env=os.environ | world) for world in worlds]

    def pass_on(number: int, _: object) -> None:
        for worker in workers:
            worker.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
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
    """Have the kernel kill this worker when its launcher dies, so none is left behind (prctl(2))."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(launcher):
        sys.exit(128 + signal.SIGKILL)


class StopFlag:
    """Takes over this process' stop signals; `requested` once one came: stop at the next step boundary."""

    def __init__(self) -> None:
        self.requested = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `.lock` of a run folder, for one job at a time; the kernel frees it when the process dies.

    Raises `ConfigError` naming host, process and Slurm job of the holder. On file systems without flock
    across nodes it guards against jobs of the same node only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise ConfigError(
                        f"{folder}: in use by {file.read().strip() or 'another job'}; "
                        "wait for it to end, stop it, or choose another --out"
                    ) from error
                time.sleep(0.1)
        file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' if job else ''}\n")
        file.flush()
        yield


@contextmanager
def watchdog(run_folder: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """Yields `alive`: `seconds` after its last call this process ends with status 1, for a job to restart.

    The stacks of all its threads go to `.stacks/rank_N.txt` of the run folder. faulthandler's own thread
    needs no interpreter lock: it works while Python waits in a collective. A process that is stopped from
    outside cannot speak; the others, waiting for it, do, and their end ends the job.
    """
    path = run_folder / STACKS / f"rank_{int(os.environ['RANK']):05d}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        alive = partial(faulthandler.dump_traceback_later, seconds, exit=True, file=file)
        alive()
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()


def set_deterministic(wanted: bool) -> None:
    """Have this process compute deterministically, or not; call before its first use of Megatron-Core.

    Megatron-Core's own switch follows torch's (model/settings.py); the fused loss, which Megatron-LM calls
    not deterministic, is refused with it (config/cross_checks.py). CPUs need none.
    """
    import torch

    torch.use_deterministic_algorithms(wanted)
    if wanted:
        # Filling fresh memory is for finding errors; FP8 weights would be quantised from it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # attention's backward adds as its blocks end
        for name, value in _DETERMINISTIC.items():
            os.environ.setdefault(name, value)


def start_evaluation(command: Sequence[str], checkpoint: Path) -> None:
    """Run `command CHECKPOINT`, which hands the work on (as sbatch does); that it fails is only logged."""
    arguments = [*command, str(checkpoint.resolve())]
    outside = {name: value for name, value in os.environ.items() if name not in _WORLD}
    try:
        subprocess.run(
            arguments, env=outside, stdin=subprocess.DEVNULL, check=True, timeout=_EVALUATION_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s: its evaluation was not started (%s)", checkpoint, error)
