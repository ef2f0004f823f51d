"""Real training under a real Slurm, interrupted in every way: bitwise the losses of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch.conftest import ROOT
from tests.support.slurm_jobs import job_field, preempt_nodes, signal_batch, wait_for_end, wait_until
from tests.support.training_runs import build_config
from tests.train.conftest import corpus, settings  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_no_jobs_left"), pytest.mark.timeout(900)]
STEPS = 400
CHANGED: dict[str, Any] = {
    "parallel": {"tensor_model_parallel_size": 2},
    "train": {"train_tokens": STEPS * 4 * 64},
    "checkpoint": {"interval": 40, "keep": 20},
    "validation": {"sets": []},
    "logging": {"interval": 2},
}


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def pid_of_task(job_id: int, rank: int) -> int:
    """The training process of one rank, by its environment."""
    wanted = {"SLURM_JOB_ID": str(job_id), "SLURM_PROCID": str(rank)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if wanted.items() <= process.environ().items() and "megatron_mathcpt.train" in command[1:5]:
                return process.pid
    raise AssertionError(f"no process of rank {rank}")


def submit(config: Path, run: Path, *overrides: str) -> int:
    command = [sys.executable, ROOT / "launch" / "submit.py", config, "--cluster", "test", "--out", run]
    command += ["--allow-dirty", f"cluster.python={json.dumps(sys.executable)}"]
    command += [f"cluster.{override}" for override in overrides]
    done = subprocess.run(command, cwd=run.parent, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[1].rstrip(":"))


def test_no_interruption_changes_the_losses(tmp_path: Path, settings: dict[str, Any]) -> None:  # noqa: F811
    """S1 warning, S2 preemption, S4 one rank killed, S5 node lost: one after another in one run."""
    config, plain, run = tmp_path / "tiny.yaml", tmp_path / "plain", tmp_path / "run"
    config.write_text(build_config(settings, **CHANGED).model_dump_json())
    train = [sys.executable, "-m", "megatron_mathcpt.train", config, "--out", plain, "--processes", "4"]
    subprocess.run(train, cwd=ROOT, check=True)
    job = submit(config, run, "partition=low")

    def after(restarts: int, steps: int) -> None:
        wait_until(lambda: job_field(job, "Restarts") == str(restarts), 60)
        start = rows(run)[-1]["step"] if rows(run) else 0
        wait_until(lambda: rows(run) and rows(run)[-1]["step"] >= start + steps, 200)

    after(0, 10)
    signal_batch(job, "USR1")
    after(1, 10)
    preempt_nodes()
    after(2, 10)
    os.kill(pid_of_task(job, 3), signal.SIGKILL)
    after(3, 4)
    (pid_file,) = Path("/run").glob("*/slurmd.node2.pid")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    start = Path(os.environ.get("MATHCPT_SLURM", ROOT.parent / "shared" / "slurm")) / "start-test-cluster.sh"
    wait_until(lambda: job_field(job, "Restarts") == "4" or job_field(job, "JobState") == "COMPLETED", 120)
    subprocess.run([start], check=True)
    assert wait_for_end(job, 300) == "COMPLETED"
    assert job_field(job, "Restarts") == "4"
    keys = ("step", "consumed_samples", "loss", "grad_norm", "learning_rate")
    assert len(rows(run)) == STEPS
    resumed, undisturbed = ([[row[key] for key in keys] for row in rows(folder)] for folder in (run, plain))
    assert resumed == undisturbed
    events = [line.split("\t")[3] for line in (run / ".slurm" / "attempts.tsv").read_text().splitlines()]
    assert [line.split()[0] for line in events].count("start") == 5
    assert events[-1] == "end 0"
