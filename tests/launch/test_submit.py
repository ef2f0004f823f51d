"""The command: what it prints, what it refuses, before anything reaches Slurm."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

BASE = ROOT / "configs" / "tiny" / "quickstart_base.yaml"
BATCH = ("train.micro_batch_size=1", "train.global_batch_size=16")


def run(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, ROOT / "launch" / "submit.py", *map(str, arguments), *BATCH]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


def test_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, script, _ = run(
        BASE, "train.seq_length=128", "--cluster", "test", "--set", "account=math", "--out", out, "--dry-run"
    )
    assert status == 0
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=base\n#SBATCH --account=math\n")
    assert f"-m megatron_mathcpt.train {out}/.slurm/config.yaml --out {out})" in script
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BASE, "--cluster", "none"), "none.yaml: cannot be read"),
        ((BASE, "name='a\nb'", "--cluster", "test"), "cannot be a job's name"),
        ((BASE, "--cluster", "test", "--set", "partition='$(x)'"), "partition: String should match pattern"),
        (
            (BASE, "--cluster", "test", "--set", "partitoin=x"),
            "partitoin: unknown key; did you mean 'partition'",
        ),
        ((BASE, "--cluster", "test", "--set", "nodes=3", "--set", "gpus_per_node=3"), "world size"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    status, shown, error = run(*arguments, "--out", tmp_path / "run", "--dry-run")
    assert (status, shown) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_run_folder_that_no_sbatch_line_can_hold(tmp_path: Path) -> None:
    status, _, error = run(BASE, "--cluster", "test", "--out", tmp_path / "a %j", "--dry-run")
    assert status == 2
    assert "cannot stand in an #SBATCH line" in error
