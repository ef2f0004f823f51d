"""Jobs of the fake trainer on the test cluster, and the commands that query, signal and preempt them."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.experiment.submit import Job, load_cluster, render, submit_job

ROOT = Path(__file__).resolve().parents[2]
TRAINER = Path(__file__).with_name("fake_trainer.py")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def slurm_cluster(*overrides: str) -> ClusterConfig:
    return load_cluster("test", [f'python="{sys.executable}"', *overrides])


def fake_job(run: Path, *arguments: str) -> Job:
    """A job of 2 nodes x 2 tasks of the fake trainer."""
    command = (sys.executable, "-P", str(TRAINER), str(run), *arguments)
    places = (run / ".slurm", ROOT, run.parent, run / "checkpoints")
    return Job(run.name, *places, command, nodes=2, tasks_per_node=2, gpus_per_node=2)


def submit(job: Job, *overrides: str) -> int:
    return submit_job(job, render(job, slurm_cluster(*overrides)))


def job_field(job_id: int, name: str) -> str:
    command = ["scontrol", "-o", "show", "job", str(job_id)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(word.partition("=")[::2] for word in shown.split("\n")[0].split(" "))[name]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s without success"
        time.sleep(0.1)


def wait_for_end(job_id: int, seconds: float = 90) -> str:
    wait_until(lambda: job_field(job_id, "JobState") in ENDED, seconds)
    return job_field(job_id, "JobState")


def job_log(job: Job, job_id: int) -> str:
    path = job.folder / f"{job_id}.log"
    return path.read_text() if path.is_file() else ""


def signal_batch(job_id: int, name: str) -> None:
    subprocess.run(["scancel", "--batch", f"--signal={name}", str(job_id)], check=True)


def preempt_nodes() -> None:
    """Submit a job that takes both nodes from the partition `low`."""
    options = ["--partition=gpu", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    subprocess.run(["sbatch", *options], check=True)
