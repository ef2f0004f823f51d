"""Check one node before a job trains on it: run by srun, one task per node.

A sick node prints its name on stdout, the reason on stderr, and exits with status 1.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

_QUERY = "ecc.errors.uncorrected.volatile.total"
# nvidia-smi still lists a GPU that fell off the bus or whose driver is too old for this torch; torch fails.
_TRY = """
import sys, torch
for number in range(int(sys.argv[1])):
    print(float(torch.zeros(1, device=f"cuda:{number}")), flush=True)
"""
_TIMEOUT_SECONDS = 60.0
_TRY_TIMEOUT_SECONDS = 180.0  # includes torch's first import from a file system that all nodes read at once
_MINIMUM_FREE_BYTES = 1 << 30


def node_faults(folder: Path, gpus: int) -> list[str]:
    """Faults of this node: `folder` not shared or full; GPUs missing, faulty or unusable by torch."""
    return [*_folder_faults(folder), *(_gpu_faults(gpus) or _torch_faults(gpus) if gpus else [])]


def _folder_faults(folder: Path) -> list[str]:
    probe = folder / f".probe_{socket.gethostname()}_{os.getpid()}"
    try:
        probe.write_bytes(b"probe")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [f"{folder}: not writable from here ({error.strerror})"]
    return [f"{folder}: {free} bytes free"] if free < _MINIMUM_FREE_BYTES else []


def _gpu_faults(gpus: int) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi: {error}"]
    if done.returncode:
        return [f"nvidia-smi: status {done.returncode}: {done.stdout.strip()} {done.stderr.strip()}"]
    return gpu_faults(done.stdout, gpus)


def gpu_faults(table: str, gpus: int) -> list[str]:
    """Faults in nvidia-smi's output: one line per GPU, uncorrected memory errors since the last reset."""
    counts = table.split("\n")[:-1]
    faults = [] if len(counts) == gpus else [f"{len(counts)} GPUs, expected {gpus}"]
    bad = [number for number, errors in enumerate(counts) if errors.strip() not in ("0", "[N/A]")]
    return [*faults, *(f"GPU {number}: {counts[number].strip()} uncorrected memory errors" for number in bad)]


def _torch_faults(gpus: int) -> list[str]:
    """The first GPU on which torch cannot create a tensor; a subprocess tries, as it may hang or crash."""
    command = [sys.executable, "-P", "-c", _TRY, str(gpus)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TRY_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        tried = (error.stdout or b"").count(b"\n")
        return [f"GPU {tried}: torch hangs ({_TRY_TIMEOUT_SECONDS:g} s)"]
    if done.returncode == 0:
        return []
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return [f"GPU {len(done.stdout.splitlines())}: torch: status {done.returncode}: {last}"]


def main(
    folder: Annotated[Path, typer.Option(help="folder of the job")],
    gpus: Annotated[int, typer.Option(help="GPUs expected; 0 skips their checks")],
) -> None:
    """Check this node, and print its name on stdout if it is sick."""
    faults = node_faults(folder, gpus)
    if faults:
        node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        typer.echo(f"{node}: {'; '.join(faults)}", err=True)
        typer.echo(node)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
