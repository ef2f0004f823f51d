"""A run's processes: exit statuses and signals reach the caller, nobody is left behind, one job a folder."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.train.process import (
    folder_lock,
    joined_world,
    local_world,
    run_workers,
    start_evaluation,
)

# A worker that writes its environment and then does what its argument says.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from megatron_mathcpt.train.process import die_with_parent
die_with_parent()
rank = os.environ["RANK"]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
Path(sys.argv[1], rank).write_text(os.environ["WORLD_SIZE"] + " " + os.environ["MASTER_PORT"])
match sys.argv[2]:
    case "fail": sys.exit(2 if rank == "1" else 0)
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "wait": time.sleep(60)
"""
LAUNCHER = (
    "import sys; from megatron_mathcpt.train.process import run_workers; "
    "sys.exit(run_workers('mathcpt_test_worker', sys.argv[1:], 2))"
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mathcpt_test_worker.py").write_text(WORKER)
    paths = [str(tmp_path / "code"), str(Path(__file__).resolve().parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield "mathcpt_test_worker"
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("behaviour", "status"), [("end", 0), ("fail", 2), ("killed", 128 + 9)])
def test_the_first_failing_status_is_returned(
    module: str, tmp_path: Path, behaviour: str, status: int
) -> None:
    assert run_workers(module, [str(tmp_path), behaviour], 2) == status
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first == second
    assert first[0] == "2"


def start_waiting(folder: Path) -> subprocess.Popen[bytes]:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder), "wait"])
    deadline = time.monotonic() + 30
    while not ((folder / "0").is_file() and (folder / "1").is_file()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return launcher


@pytest.mark.usefixtures("module")
def test_a_stop_signal_is_passed_on(tmp_path: Path) -> None:
    launcher = start_waiting(tmp_path)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 75


@pytest.mark.usefixtures("module")
def test_workers_end_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = start_waiting(tmp_path)
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(listed) == 2
    launcher.kill()
    launcher.wait(timeout=30)
    deadline = time.monotonic() + 10
    while any(is_running(int(pid)) for pid in listed):
        assert time.monotonic() < deadline, "a worker outlived its launcher"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_second_job_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_mathcpt.train.process._LOCK_SECONDS", 0.2)
    refused = pytest.raises(ConfigError, match=f"in use by process {os.getpid()}")
    with folder_lock(tmp_path), refused, folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_joined_world() -> None:
    assert joined_world({}) is None
    assert joined_world({"RANK": "1", "WORLD_SIZE": "2"}) == {}
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert joined_world(slurm) is None, "an interactive Slurm shell is no launched worker"
    joined = joined_world(slurm | {"MASTER_ADDR": "node1"})
    assert joined == {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


def test_workers_are_told_of_an_expected_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_DEVICE_MAX_CONNECTIONS", "OMP_NUM_THREADS", "MATHCPT_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("megatron_mathcpt.train.process._NVIDIA_DRIVER", Path("/dev/null"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local_world(1, 2, 9)["MATHCPT_DEVICE"] == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden, and so not expected
    assert "MATHCPT_DEVICE" not in local_world(1, 2, 9)
    monkeypatch.setenv("MATHCPT_DEVICE", "cpu")
    assert local_world(1, 2, 9)["OMP_NUM_THREADS"] == "1"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in local_world(1, 2, 9)
    monkeypatch.setenv("MATHCPT_DEVICE", "cuda")
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    told = local_world(1, 8, 9)
    assert (told["MATHCPT_DEVICE"], told["CUDA_DEVICE_MAX_CONNECTIONS"]) == ("cuda", "1")
    assert (told["OMP_NUM_THREADS"], local_world(1, 32, 9)["OMP_NUM_THREADS"]) == ("8", "3")
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    assert local_world(1, 8, 9)["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"


def test_the_command_gets_the_checkpoint_and_is_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    script, seen = tmp_path / "a job.sh", tmp_path / "seen"
    script.write_text(f'#!/bin/sh\nprintf "%s|" "$@" "${{RANK:-none}}" "${{MASTER_ADDR:-none}}" > {seen}\n')
    script.chmod(0o755)
    start_evaluation([str(script), "$(touch bad); a"], tmp_path / "step_00000008")
    assert seen.read_text() == f"$(touch bad); a|{tmp_path / 'step_00000008'}|none|none|"


@pytest.mark.parametrize("command", [["false"], ["no-such-command"]])
def test_a_failure_is_a_warning(command: list[str], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("megatron_mathcpt")
    logger.addHandler(caplog.handler)
    try:
        start_evaluation(command, Path("step_00000008"))
    finally:
        logger.removeHandler(caplog.handler)
    assert "step_00000008: its evaluation was not started" in caplog.text
