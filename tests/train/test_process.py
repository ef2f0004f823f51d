"""Mistakes are refused before any process starts; exit statuses reach the caller; no worker outlives it."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from megatron_mathcpt.config.experiment import PrecisionSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.train import process
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.support.llama_models import ALONE
from tests.support.training_runs import ROOT, SHAPE, ConfigOf, run_command, train_command


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"corpus": "nowhere"}, "nowhere/manifest.json: not found"),
        ("data", {"blend": {"chemistry": 1}}, "no pool 'chemistry'"),
        ("data", {"max_epochs": {"general": 0.1}}, "data.max_epochs.general"),
        ("model", {"vocab_size": 100}, "its tokenizer has 500 tokens"),
        ("init", {"scratch": False, "checkpoint": "nowhere"}, "nowhere: no complete checkpoint"),
        ("init", {"scratch": False, "hf": "nowhere"}, "nowhere/config.json: cannot be read"),
    ],
)
def test_inputs_that_do_not_fit(config_of: ConfigOf, section: str, fields: Any, message: str) -> None:
    with pytest.raises(MathCptError, match=message):
        resolve_inputs(config_of(**{section: fields}))


def test_a_check_reads_all_of_the_data(config_of: ConfigOf, corpus: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    check = [*train_command(config_of(data={"corpus": str(damaged)}), tmp_path / "out"), "--check"]
    assert run_command(check).returncode == 0
    tokens = damaged / "datasets" / "general" / "train.bin"
    tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    done = run_command(check)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "general/train.bin: checksum differs from the manifest" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_worker_trains_on_a_cpu_when_a_gpu_is_expected(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers exit before their first collective, and each prints what its torch sees."""
    monkeypatch.setenv("MATHCPT_DEVICE", "cuda")
    done = run_command([*train_command(config_of(), tmp_path / "out"), "--processes", "2"])
    assert (done.returncode, done.stdout) == (2, "")
    message = f"a GPU is expected (MATHCPT_DEVICE=cuda), but torch {torch.__version__}"
    assert [message in line for line in done.stderr.splitlines()] == [True, True]
    assert os.listdir(tmp_path / "out") == [".lock"]


# A worker that writes its environment and then does what its argument says; alone it starts two.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from megatron_mathcpt.train.process import die_with_parent, run_workers
if "RANK" not in os.environ: sys.exit(run_workers("mathcpt_test_worker", sys.argv[1:], 2))
die_with_parent()
rank = os.environ["RANK"]
Path(sys.argv[1], rank).write_text(os.environ["WORLD_SIZE"] + " " + os.environ["MASTER_PORT"])
match sys.argv[2]:
    case "fail": sys.exit(2 if rank == "1" else 0)
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "wait": time.sleep(60)
"""


def start(folder: Path, behaviour: str) -> "subprocess.Popen[bytes]":
    """The launcher, once both of its workers have begun."""
    (folder / "mathcpt_test_worker.py").write_text(WORKER)
    worker = [sys.executable, "-m", "mathcpt_test_worker", str(folder), behaviour]
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    launcher, deadline = subprocess.Popen(worker, env=os.environ | paths), time.monotonic() + 30
    while not all((folder / rank).is_file() for rank in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return launcher


@pytest.mark.parametrize(("behaviour", "status"), [("end", 0), ("fail", 2), ("killed", 128 + 9)])
def test_the_first_failing_status_is_returned(tmp_path: Path, behaviour: str, status: int) -> None:
    assert start(tmp_path, behaviour).wait(timeout=30) == status
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first == second
    assert first[0] == "2"


def test_workers_end_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = start(tmp_path, "wait")
    workers = psutil.Process(launcher.pid).children()
    assert len(workers) == 2
    launcher.kill()
    launcher.wait(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]


def test_joined_world() -> None:
    assert process.joined_world({}) is None
    assert process.joined_world({"RANK": "1", "WORLD_SIZE": "2"}) == {}
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert process.joined_world(slurm) is None, "an interactive Slurm shell is no launched worker"
    world = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert process.joined_world(slurm | {"MASTER_ADDR": "node1"}) == world


@pytest.mark.parametrize(
    ("environment", "size", "expected"),
    [
        ({}, 2, ("cuda", "1", "8")),
        ({}, 32, ("cuda", "1", "3")),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, (None, None, "1")),  # hidden, and so not expected
        ({"MATHCPT_DEVICE": "cpu"}, 2, (None, None, "1")),
        ({"CUDA_VISIBLE_DEVICES": "", "MATHCPT_DEVICE": "cuda"}, 2, ("cuda", "1", "8")),
        ({"CUDA_DEVICE_MAX_CONNECTIONS": "32", "OMP_NUM_THREADS": "5"}, 8, ("cuda", "32", "5")),
    ],
)
def test_workers_expect_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], size: int, expected: tuple[str | None, ...]
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(process, "_NVIDIA_DRIVER", Path("/dev/null"))
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    names = ("MATHCPT_DEVICE", "CUDA_DEVICE_MAX_CONNECTIONS", "OMP_NUM_THREADS")
    assert tuple(process.local_world(1, size, 9).get(name) for name in names) == expected


def test_an_evaluation_gets_the_checkpoint_and_is_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    script, seen, checkpoint = tmp_path / "a job.sh", tmp_path / "seen", tmp_path / "step_00000008"
    script.write_text(f'#!/bin/sh\nprintf "%s|" "$@" "${{RANK:-none}}" "${{MASTER_ADDR:-none}}" > {seen}\n')
    script.chmod(0o755)
    process.start_evaluation([str(script), "$(touch bad); a"], checkpoint)
    assert seen.read_text() == f"$(touch bad); a|{checkpoint}|none|none|"
    for failing in (["false"], ["no-such-command"]):  # a warning only
        caplog.clear()
        process.start_evaluation(failing, checkpoint)
        assert "step_00000008: its evaluation was not started" in caplog.text


@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_reaches_every_library(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    use_cpu()
    from megatron_mathcpt.model.settings import transformer_config

    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    process.set_deterministic(wanted)
    config = transformer_config(SHAPE, ALONE, PrecisionSection(params_dtype="fp32"), fused=False)
    process.set_deterministic(False)
    assert config.deterministic_mode == wanted
    libraries = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
    assert environment == (libraries | {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"} if wanted else {})
