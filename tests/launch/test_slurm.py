"""The job script under a real Slurm: what each stop, kill and failure ends in (S1-S4, S8, S9)."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_mathcpt.experiment.submit import Job
from tests.launch.jobs import (
    ROOT,
    field,
    log,
    signal_batch,
    single,
    state,
    submit,
    test_cluster,
    trainee_job,
    wait_for,
    wait_for_end,
)

pytestmark = pytest.mark.usefixtures("_no_jobs_left")


def steps(run: Path, rank: int) -> list[tuple[int, int]]:
    """(attempt, step) of everything that `rank` did."""
    return [tuple(map(int, line.split())) for line in (run / f"rank_{rank}").read_text().splitlines()]  # type: ignore[misc]


def reached(run: Path, step: int) -> bool:
    files = [run / f"rank_{rank}" for rank in range(4)]
    return all(path.exists() and f" {step}\n" in path.read_text() for path in files)


def test_warning_then_killed_rank_then_done(tmp_path: Path) -> None:
    """S1: saved at the next step, requeued, nothing done twice. S4: goes on from the last checkpoint."""
    run = tmp_path / "run"
    job = trainee_job(run, "--hold-at", "7", "--kill-at", "2:13:1")
    job_id = submit(job)
    wait_for(lambda: reached(run, 7))
    signal_batch(job_id, "USR1")
    assert wait_for_end(job_id) == "COMPLETED"
    assert field(job_id, "Restarts") == "2"
    for rank in range(4):
        done = steps(run, rank)
        assert [step for attempt, step in done if attempt == 0] == list(range(1, 9))
        assert [step for attempt, step in done if attempt == 1][:2] == [9, 10]
        assert [step for attempt, step in done if attempt == 2] == list(range(11, 21))
    told = log(job, job_id)
    assert "status 75, newest checkpoint step_00000008: requeues" in told
    assert "task 2 on node2 was the first to fail, with status 137" in told
    assert not (job.folder / "owner").is_symlink()


def test_cancelled_job_stays_cancelled(tmp_path: Path) -> None:
    """S3: the last checkpoint is whole, no requeue."""
    run = tmp_path / "run"
    job = trainee_job(run, "--hold-at", "7")
    job_id = submit(job)
    wait_for(lambda: reached(run, 7))
    subprocess.run(["scancel", str(job_id)], check=True)
    wait_for(lambda: "cancelled or ended by Slurm" in log(job, job_id), 15)
    assert wait_for_end(job_id) == "CANCELLED"
    assert field(job_id, "Restarts") == "0"
    assert (run / "checkpoints" / "step_00000005" / "manifest.json").exists()


def test_bad_input_is_not_requeued_and_a_crash_loop_ends(tmp_path: Path) -> None:
    """Status 2 of the first task decides, whatever the others end with. S8: gives up after the limit."""
    bad, crash = trainee_job(tmp_path / "bad", "--fail", "2"), trainee_job(tmp_path / "crash", "--fail", "1")
    bad_id = submit(bad)
    crash_id = submit(crash, test_cluster("requeues_without_progress=1"))
    assert wait_for_end(bad_id) == "FAILED"
    assert (field(bad_id, "ExitCode"), field(bad_id, "Restarts")) == ("2:0", "0")
    assert wait_for_end(crash_id) == "FAILED"
    assert (field(crash_id, "ExitCode"), field(crash_id, "Restarts")) == ("1:0", "1")
    assert "gives up: 1 requeues brought no checkpoint newer than none" in log(crash, crash_id)


def test_preempted_job_saves_and_comes_back(tmp_path: Path) -> None:
    """S2: TERM reaches the tasks alone, the script asks for the requeue."""
    run = tmp_path / "run"
    job = trainee_job(run, "--hold-at", "7")
    job_id = submit(job, test_cluster("partition=low"))
    wait_for(lambda: reached(run, 7))
    subprocess.run(
        ["sbatch", "--partition=gpu", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"],
        check=True,
    )
    assert wait_for_end(job_id) == "COMPLETED"
    assert field(job_id, "Restarts") == "1"
    for rank in range(4):
        assert [step for _, step in steps(run, rank)] == list(range(1, 21))


def test_second_job_on_a_folder_is_refused_and_a_dead_owner_replaced(tmp_path: Path) -> None:
    """S9."""
    run = tmp_path / "run"
    run.mkdir()
    small = test_cluster("nodes=1")
    first = single(trainee_job(run), "--hold-at", "3")
    first_id = submit(first, small)
    wait_for((run / "rank_0").exists)
    script = (first.folder / "job.sbatch").read_text()
    sbatch = ["sbatch", "--parsable"]
    second_id = int(subprocess.run(sbatch, input=script, capture_output=True, text=True, check=True).stdout)
    assert wait_for_end(second_id) == "FAILED"
    assert field(second_id, "ExitCode") == "2:0"
    assert f"is in use by job {first_id}" in log(first, second_id)
    subprocess.run(["scancel", "--signal=KILL", "--full", str(first_id)], check=True)
    wait_for(lambda: state(first_id) not in ("RUNNING", "COMPLETING"), 30)
    (first.folder / "owner").unlink(missing_ok=True)
    (first.folder / "owner").symlink_to("999999")
    third_id = submit(replace(first, command=first.command[:4]), small)
    (first.folder / "owner").symlink_to("999999")
    assert wait_for_end(third_id) == "COMPLETED"
    assert "takes over from job 999999" in log(first, third_id)


def health_job(folder: Path, nvidia_smi: str) -> tuple[Job, int]:
    """A job of one step on one node that is questioned first, where `nvidia_smi` is the tool's script."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{nvidia_smi}")
    tool.chmod(0o755)
    (folder / "run").mkdir()
    job = trainee_job(folder / "run", "--steps", "1")
    job = replace(job, nodes=1, check_nodes=True, tasks_per_node=1)
    if (folder / "code").exists():
        job = replace(job, code=folder / "code")
    path = f'environment={{PATH: "{tool.parent}:{os.environ["PATH"]}"}}'
    return job, submit(job, test_cluster("nodes=1", "check_gpus=true", path))


def test_sick_node_is_left_out(tmp_path: Path) -> None:
    """nvidia-smi finds one GPU too few on the first node; the job comes back without that node."""
    first, code = tmp_path / "first", tmp_path / "code"
    code.mkdir()  # the job's own, with a torch for nodes that have GPUs in name only
    (code / "megatron_mathcpt").symlink_to(ROOT / "megatron_mathcpt")
    (code / "torch.py").write_text("def zeros(*_, device): return 0.0\n")
    job, job_id = health_job(
        tmp_path,
        f'[ -s {first} ] || echo "$SLURMD_NODENAME" >{first}\n'
        f'echo 0\n[ "$SLURMD_NODENAME" = "$(cat {first})" ] || echo 0\n',
    )
    assert wait_for_end(job_id) == "COMPLETED"
    told, sick = log(job, job_id), first.read_text().strip()
    assert f"health check failed with status 1 on: {sick}" in told
    assert f"{sick}: 1 GPUs, expected 2" in told
    assert field(job_id, "ExcNodeList") == sick
    assert {field(job_id, "NodeList"), sick} == {"node1", "node2"}


def test_torch_finds_a_node_sick_whose_driver_answers(tmp_path: Path) -> None:
    """nvidia-smi counts both GPUs of every node; torch sees none of them."""
    job, job_id = health_job(tmp_path, "echo 0\necho 0\n")
    wait_for(lambda: "health check failed with status 1 on: node" in log(job, job_id))
    assert "GPU 0: torch: status 1" in log(job, job_id)


def test_values_arrive_unchanged(tmp_path: Path) -> None:
    """X4: what may stand in a job comes back from Slurm, and reaches the task, as it was given."""
    nasty = """it's "$(touch canary)" `touch canary`; #SBATCH --nodes=9 \\ * {} %j é"""
    work = tmp_path / "a+b=c@d~e"
    run = work / "r.1_x-y"
    run.mkdir(parents=True)
    record = "import os, sys; open(sys.argv[1], 'w').write(sys.argv[2] + os.environ['NCCL_DEBUG'])"
    job = replace(single(trainee_job(run)), name="n.1_x-y+z")
    job = replace(job, command=(*job.command[:2], "-c", record, str(run / "seen"), nasty))
    cluster = test_cluster("account=math-1", f"environment={json.dumps({'NCCL_DEBUG': nasty})}")
    job_id = submit(job, cluster)
    assert wait_for_end(job_id) == "COMPLETED"
    assert (field(job_id, "JobName"), field(job_id, "Account")) == ("n.1_x-y+z", "math-1")
    assert (field(job_id, "WorkDir"), field(job_id, "NumNodes")) == (str(work), "1")
    assert field(job_id, "StdOut") == f"{run}/.slurm/{job_id}.log"
    assert (run / "seen").read_text() == nasty * 2
    assert not list(tmp_path.rglob("canary"))
