"""The job script under a real Slurm: the outcome of each stop, kill and failure (S1-S4, S8, S9)."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_mathcpt.experiment.submit import Job
from tests.support import slurm_jobs
from tests.support.slurm_jobs import fake_job, job_field, job_log, submit, wait_for_end, wait_until

pytestmark = pytest.mark.usefixtures("_no_jobs_left")
ONE_TASK = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0}


def steps(run: Path, rank: int) -> list[tuple[int, int]]:
    """(attempt, step) of every step that `rank` took."""
    path = run / f"rank_{rank}"
    words = map(int, path.read_text().split() if path.exists() else [])
    return list(zip(words, words, strict=True))


def paused_job(run: Path, *overrides: str, more: tuple[str, ...] = ()) -> tuple[Job, int]:
    """A job whose four ranks wait at step 7 of their first attempt."""
    job = fake_job(run, "pause-at=7", *more)
    job_id = submit(job, *overrides)
    wait_until(lambda: all((0, 7) in steps(run, rank) for rank in range(4)))
    return job, job_id


def test_warning_then_killed_rank_then_done(tmp_path: Path) -> None:
    """S1: saves at the next step, is requeued, repeats no step. S4: resumes from the last checkpoint."""
    run = tmp_path / "run"
    job, job_id = paused_job(run, more=("kill-at=2:13:1",))
    slurm_jobs.signal_batch(job_id, "USR1")
    assert wait_for_end(job_id) == "COMPLETED"
    assert job_field(job_id, "Restarts") == "2"
    for rank in range(4):
        first, second, third = ([step for at, step in steps(run, rank) if at == n] for n in range(3))
        assert (first, second[:2], third) == (list(range(1, 9)), [9, 10], list(range(11, 21)))
    text = job_log(job, job_id)
    assert "status 75, newest checkpoint step_00000008: requeues" in text
    assert "task 2 on node2 was the first to fail, with status 137" in text
    assert not (job.folder / "owner").is_symlink()


def test_preempted_job_saves_and_is_requeued(tmp_path: Path) -> None:
    """S2: only the tasks receive TERM, and the script requests the requeue."""
    _, job_id = paused_job(tmp_path / "run", "partition=low")
    slurm_jobs.preempt_nodes()
    assert wait_for_end(job_id) == "COMPLETED"
    assert job_field(job_id, "Restarts") == "1"
    for rank in range(4):
        assert [step for _, step in steps(tmp_path / "run", rank)] == list(range(1, 21))


def test_cancelled_job_stays_cancelled(tmp_path: Path) -> None:
    """S3: the last checkpoint is complete, and there is no requeue."""
    job, job_id = paused_job(tmp_path / "run")
    subprocess.run(["scancel", str(job_id)], check=True)
    wait_until(lambda: "cancelled or ended by Slurm" in job_log(job, job_id), 15)
    assert wait_for_end(job_id) == "CANCELLED"
    assert job_field(job_id, "Restarts") == "0"
    assert (job.checkpoints / "step_00000005" / "manifest.json").exists()


def test_killed_ranks_resume_from_the_last_checkpoint(tmp_path: Path) -> None:
    """S5: KILL of all ranks at once loses the steps since the last checkpoint, and no more."""
    job, job_id = paused_job(tmp_path / "run")
    subprocess.run(["scancel", "--signal=KILL", f"{job_id}.0"], check=True)
    assert wait_for_end(job_id) == "COMPLETED"
    assert job_field(job_id, "Restarts") == "1"
    for rank in range(4):
        assert [step for at, step in steps(tmp_path / "run", rank) if at == 1] == list(range(6, 21))
    assert "newest checkpoint step_00000005: requeues" in job_log(job, job_id)


def test_only_tasks_of_a_whole_world_take_themselves_for_workers(tmp_path: Path) -> None:
    """The variables that Slurm really sets, for a task, a batch script and an allocation's shell."""
    code = "import os; from megatron_mathcpt.device import joined_world; print(joined_world(os.environ))"
    shell = f"cd {slurm_jobs.ROOT} && {sys.executable} -c {shlex.quote(code)}"
    address, several = "MASTER_ADDR=node1 MASTER_PORT=20000", "--ntasks=2 --nodes=2"
    script, log = tmp_path / "job.sh", tmp_path / "log"
    script.write_text(f"#!/bin/sh\n#SBATCH --output={log}\n{shell}\nsrun -n1 sh -c {shlex.quote(shell)}\n")
    refused = "SLURM_PROCID=1: set as by a launcher, but MASTER_ADDR is not set"
    for command, words in (
        (f"srun {several} sh -c {shlex.quote(shell)}", [refused]),
        (f"srun --ntasks=1 sh -c {shlex.quote(shell)}", ["None"]),
        (f"salloc {several} sh -c {shlex.quote(shell)}", ["None"]),
        (f"{address} srun {several} sh -c {shlex.quote(shell)}", ["'RANK': '0'", "'RANK': '1'"]),
        (f"sbatch --wait {several} {script}; cat {log}", ["None"]),
    ):
        options = {"capture_output": True, "text": True, "cwd": tmp_path}
        done = subprocess.run(["sh", "-c", command], check=False, **options)
        assert all(word in done.stdout + done.stderr for word in words), f"{command}: {done}"
    assert done.stdout.split("\n").count("None") == 2, "the batch script, and a single task of it"


def test_bad_input_is_not_requeued_and_a_crash_loop_ends(tmp_path: Path) -> None:
    """The first task's status 2 decides, whatever the others exit with. S8: the limit ends a crash loop."""
    bad, crash = fake_job(tmp_path / "bad", "fail=2"), fake_job(tmp_path / "crash", "fail=1")
    unset, setup = fake_job(tmp_path / "unset"), tmp_path / "setup.sh"
    setup.write_text("module load no-such-module\n")
    ids = submit(bad), submit(crash, "requeues_without_progress=1"), submit(unset, f"setup_script={setup}")
    for job_id, code, restarts in zip(ids, ("2:0", "1:0", "2:0"), "010", strict=True):
        assert wait_for_end(job_id) == "FAILED"
        assert (job_field(job_id, "ExitCode"), job_field(job_id, "Restarts")) == (code, restarts)
    text = job_log(bad, ids[0])
    assert "\nerror: rank 0 fails\n  in two ways\n" in text and "The end" not in text
    assert "gives up: 1 requeues brought no checkpoint newer than none" in job_log(crash, ids[1])
    assert f"error: {setup}: setup_script of cluster test: status 127" in job_log(unset, ids[2])
    assert (unset.folder / "attempts.tsv").read_text().endswith("\tend 2\n")
    assert not (tmp_path / "unset" / "rank_0").exists()


def test_second_job_on_a_folder_is_refused_and_a_dead_owner_replaced(tmp_path: Path) -> None:
    """S9."""
    run = tmp_path / "run"
    run.mkdir()
    first = replace(fake_job(run, "pause-at=3"), **ONE_TASK)
    owner = first.folder / "owner"
    first_id = submit(first, "nodes=1")
    wait_until((run / "rank_0").exists)
    sbatch = ["sbatch", "--parsable", first.folder / "job.sbatch"]
    second_id = int(subprocess.run(sbatch, capture_output=True, text=True, check=True).stdout)
    assert wait_for_end(second_id) == "FAILED"
    assert job_field(second_id, "ExitCode") == "2:0"
    assert f"is in use by job {first_id}" in job_log(first, second_id)
    subprocess.run(["scancel", "--signal=KILL", "--full", str(first_id)], check=True)
    wait_until(lambda: job_field(first_id, "JobState") not in ("RUNNING", "COMPLETING"), 30)
    third_id = submit(replace(fake_job(run), **ONE_TASK), "nodes=1")
    owner.symlink_to("999999")
    assert wait_for_end(third_id) == "COMPLETED"
    assert "takes over from job 999999" in job_log(first, third_id)


def test_unhealthy_node_is_excluded(tmp_path: Path) -> None:
    """nvidia-smi finds one GPU too few on the first node; the job is requeued without that node."""
    first, code, tool = tmp_path / "first", tmp_path / "code", tmp_path / "bin" / "nvidia-smi"
    for folder in (code, tool.parent, tmp_path / "run"):
        folder.mkdir()
    (code / "megatron_mathcpt").symlink_to(slurm_jobs.ROOT / "megatron_mathcpt")
    (code / "torch.py").write_text("def zeros(*_, device): return 0.0\n")  # the nodes have GPUs in name only
    tool.write_text(
        f'#!/bin/sh\n[ -s {first} ] || echo "$SLURMD_NODENAME" >{first}\n'
        f'echo 0\n[ "$SLURMD_NODENAME" = "$(cat {first})" ] || echo 0\n'
    )
    tool.chmod(0o755)
    sizes = {"nodes": 1, "tasks_per_node": 1}  # of two GPUs
    job = replace(fake_job(tmp_path / "run", "steps=1"), code=code, check_nodes=True, **sizes)
    path = f'environment={{PATH: "{tool.parent}:{os.environ["PATH"]}"}}'
    job_id = submit(job, "nodes=1", "check_gpus=true", path)
    assert wait_for_end(job_id) == "COMPLETED"
    text, sick = job_log(job, job_id), first.read_text().strip()
    assert f"health check failed with status 1 on: {sick}" in text
    assert f"{sick}: 1 GPUs, expected 2" in text
    assert job_field(job_id, "ExcNodeList") == sick
    assert {job_field(job_id, "NodeList"), sick} == {"node1", "node2"}


def test_values_arrive_unchanged(tmp_path: Path) -> None:
    """X4: Slurm reports, and the task receives, every allowed value unchanged."""
    nasty = """it's "$(touch canary)" `touch canary`; #SBATCH --nodes=9 \\ * {} %j é"""
    work = tmp_path / "a+b=c@d~e"
    run = work / "r.1_x-y"
    run.mkdir(parents=True)
    record = "import os, sys; open(sys.argv[1], 'w').write(sys.argv[2] + os.environ['NCCL_DEBUG'])"
    command = (sys.executable, "-P", "-c", record, str(run / "seen"), nasty)
    job = replace(fake_job(run), name="n.1_x-y+z", command=command, **ONE_TASK)
    job_id = submit(job, "account=math-1", f"environment={json.dumps({'NCCL_DEBUG': nasty})}")
    assert wait_for_end(job_id) == "COMPLETED"
    assert (job_field(job_id, "JobName"), job_field(job_id, "Account")) == ("n.1_x-y+z", "math-1")
    assert (job_field(job_id, "WorkDir"), job_field(job_id, "NumNodes")) == (str(work), "1")
    assert job_field(job_id, "StdOut") == f"{run}/.slurm/{job_id}.log"
    assert (run / "seen").read_text() == nasty * 2
    assert not list(tmp_path.rglob("canary"))
