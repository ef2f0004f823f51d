"""The test cluster: a real Slurm, started by the scripts that `MATHCPT_SLURM` names."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Two nodes of a real Slurm on this machine, which is stopped afterwards unless it was already up."""
    folder = Path(os.environ.get("MATHCPT_SLURM", ROOT.parent / "shared" / "slurm"))
    if not (folder / "start-test-cluster.sh").is_file():
        pytest.skip("MATHCPT_SLURM is not a folder with start-test-cluster.sh")
    if os.getuid() != 0:
        pytest.skip("the test cluster needs root")
    ping = ["scontrol", "ping"]
    up = shutil.which("scontrol") and not subprocess.run(ping, check=False, capture_output=True).returncode
    started = subprocess.run([folder / "start-test-cluster.sh"], capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip(f"the test cluster does not start: {started.stderr.strip()[-200:]}")
    yield
    if not up:
        subprocess.run([folder / "stop-test-cluster.sh"], check=False, capture_output=True)


@pytest.fixture
def _no_jobs_left(slurm: None, tmp_path: Path) -> Iterator[None]:
    """Cancel the jobs that a test left in the queue; their working folder identifies them."""
    yield
    command = ["squeue", "--noheader", "--format=%A %Z"]
    queue = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    jobs = [line.split(" ")[0] for line in queue if str(tmp_path) in line]
    if jobs:
        subprocess.run(["scancel", *jobs], check=False)
        subprocess.run(["scancel", "--full", "--signal=KILL", *jobs], check=False, capture_output=True)
