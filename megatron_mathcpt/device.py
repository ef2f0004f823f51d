"""This process among those of its launcher, and its device; no torch at import.

MATHCPT_DEVICE (cuda or cpu) decides the device if it is set, else a GPU is used if torch sees one. Job
scripts and the launcher set it, so that a process that expects a GPU and finds none exits instead of training
on its CPU, or waiting for the other processes on another backend.
"""

import os
import re
import socket
from collections.abc import Mapping

from megatron_mathcpt.errors import ConfigError, DeviceError, one_line

VARIABLE = "MATHCPT_DEVICE"
_RANKS, _ADDRESS = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT")  # torchrun's names
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
# Open MPI, MPICH and Intel MPI, MVAPICH2: _RANK and _SIZE. srun sets some of them too.
_MPI = ("OMPI_COMM_WORLD", "PMI", "MV2_COMM_WORLD", "PMIX")


def joined_world(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Rank and sizes if a launcher started this process, {} if they have torchrun's names; else None.

    Raises `ConfigError` for variables that say so in part, or wrongly: each process would work alone.
    """
    given = {name: value for name, value in environment.items() if value}
    # An interactive step has a size of its own and the SLURM_NTASKS of the whole job.
    sizes = filter(None, map(given.get, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")))
    size, rank = next(sizes, None), given.get("SLURM_PROCID")
    if size != "1" and given.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in given:
        rank = None  # of the batch script, which is no task of srun
    given |= {"SLURM_NTASKS": size} if size else {}
    task = {"RANK": "0", "SIZE": "1"} if rank is None else {"RANK": rank, "SIZE": size or "1"}
    mpi = {f"{kind}_{part}": value for kind in _MPI for part, value in task.items()}
    several = [name for name, value in mpi.items() if given.get(name, value) != value]
    names, address = _RANKS, [name for name in _ADDRESS if name in given]
    found = [name for name in (*_RANKS, *several) if name in given]
    if not found and rank is not None and ((rank, size or "1") != ("0", "1") or address):
        found, names = ["SLURM_PROCID"], _SLURM
    if not (found := found or address):
        return None
    if missing := [name for name in (*names, *_ADDRESS) if name not in given]:
        raise ConfigError(
            f"{found[0]}={given[found[0]]}: set as by a launcher, but {missing[0]} is not set, so that each "
            "process would work alone; start all by torchrun, or by srun after exporting MASTER_ADDR and "
            f"MASTER_PORT, or unset {found[0]}"
        )
    count = names[1]
    for name in (count, names[0], names[2], "MASTER_PORT"):
        low, high = (1, 65535) if name in (count, "MASTER_PORT") else (0, int(given[count]) - 1)
        if not re.fullmatch("[0-9]{1,5}", given[name]) or not low <= int(given[name]) <= high:
            of = "" if high == 65535 else f", of {count}={given[count]}"
            raise ConfigError(f"{name}={given[name]}: must be an integer from {low} to {high}{of}")
    if names is _RANKS:
        return {}
    # As 8(x2): eight tasks on each of two nodes.
    tasks = re.fullmatch(r"(\d+)(\(x\d+\))?", given.get("SLURM_STEP_TASKS_PER_NODE", ""))
    world = dict(zip(_RANKS, (given[name] for name in names), strict=True))
    return world | ({"LOCAL_WORLD_SIZE": tasks[1]} if tasks else {})


def on_gpu() -> bool:
    """Whether this process uses a GPU, number LOCAL_RANK; `DeviceError` if its node has too few."""
    import torch

    expected = os.environ.get(VARIABLE)
    if expected not in (None, "cuda", "cpu"):
        raise DeviceError(f"{VARIABLE}={expected}: must be cuda or cpu")
    if expected == "cpu":
        return False
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number, here = int(os.environ.get("LOCAL_RANK") or 0), os.environ.get("LOCAL_WORLD_SIZE", "")
    needed = max(number + 1, int(here) if here.isdecimal() else 0)
    process = f"{socket.gethostname()}: rank {os.environ.get('RANK', '0')}"
    if expected == "cuda" and not seen:
        found = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees none: {_cuda_error()}"
        drivers = "CUDA 13 needs an NVIDIA driver of R580 or newer, CUDA 12 of R525"
        remedy = f"{needed} needed here; {drivers}; set {VARIABLE}=cpu to use the CPU"
        raise DeviceError(f"{process}: a GPU is expected ({VARIABLE}=cuda), but {found} ({remedy})")
    # All processes of the node end, also those that have a GPU: they would wait for the others.
    if 0 < seen < needed:
        lacking = f"none for local rank {number}, " if number >= seen else ""
        found = f"torch sees {seen} GPUs, {lacking}{needed} needed here"
        remedy = f"and let each see all GPUs of its node (set {VARIABLE}=cpu to use the CPU)"
        raise DeviceError(f"{process}: {found}; start one process per GPU, {remedy}")
    return seen > 0


def _cuda_error() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        return one_line(str(error))
    return "no device"
