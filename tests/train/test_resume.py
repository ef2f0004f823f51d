"""A run that was stopped, or killed, and started again ends with the same bits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.run_folder import newest_checkpoint
from megatron_mathcpt.train.metrics import TIMINGS


def command(config: ExperimentConfig, out: Path) -> list[str]:
    path = out.with_suffix(".yaml")
    path.write_text(dump_yaml(config))
    return [sys.executable, "-m", "megatron_mathcpt.train", str(path), "--out", str(out)]


def rows_without_timings(out: Path) -> list[dict[str, Any]]:
    rows = read_json_lines(out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def wait_for_step(out: Path, step: int) -> None:
    """Return once the checkpoint after `step` is committed."""
    path = out / "checkpoints" / f"step_{step:08d}"
    deadline = time.monotonic() + 120
    while not path.is_dir():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def check_same_run(whole: Path, resumed: Path) -> None:
    """Each step once, with the bits of the undisturbed run, and equal final checkpoint files."""
    assert rows_without_timings(resumed) == rows_without_timings(whole)
    first, second = (load_manifest(newest_checkpoint(out), "checkpoint") for out in (whole, resumed))
    shards = {name: file for name, file in first.outputs.items() if name.endswith(".distcp")}
    assert shards
    assert {name: second.outputs[name] for name in shards} == shards
    assert load_manifest(resumed, "run").counts == load_manifest(whole, "run").counts


@pytest.fixture(scope="module")
def whole(config_of: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run on one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(config_of(), out), check=True, timeout=200)
    return out


def test_a_stopped_run_goes_on_with_the_same_bits(
    whole: Path, config_of: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = command(config_of(), out)
    run = subprocess.Popen(arguments)
    wait_for_step(out, 8)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 75
    stopped_at = load_manifest(newest_checkpoint(out), "checkpoint").counts["step"]
    assert 8 < stopped_at < 20
    assert subprocess.run(arguments, check=False, timeout=200).returncode == 0
    check_same_run(whole, out)


def test_a_finished_run_is_left_alone_without_torch(
    whole: Path, config_of: Callable[..., ExperimentConfig]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    arguments = [sys.executable, "-X", "importtime", *command(config_of(), whole)[1:]]
    done = subprocess.run(arguments, check=True, timeout=60, capture_output=True, text=True)
    assert "already trained" in done.stderr
    assert "| torch" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_a_killed_run_goes_on_with_the_same_bits(
    config_of: Callable[..., ExperimentConfig], tmp_path: Path, victim: str
) -> None:
    config = config_of(parallel={"tensor_model_parallel_size": 2})
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(config, whole), check=True, timeout=200)
    arguments = command(config, out)
    for step in (8, 16):
        run = subprocess.Popen(arguments)
        wait_for_step(out, step)
        target = run.pid if victim == "launcher" else children(run.pid)[1]
        os.kill(target, signal.SIGKILL)
        assert run.wait(timeout=60) != 0
    subprocess.run(arguments, check=True, timeout=200)
    check_same_run(whole, out)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]
