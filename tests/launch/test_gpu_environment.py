"""The parts of the GPU environment that need no GPU: scripts, consistent pins, the proof's arithmetic."""

import hashlib
import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from megatron_mathcpt.experiment.submit import load_cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("tests/*.sh")]), ids=str)
def test_shellcheck_finds_nothing(script: Path) -> None:
    command = ["shellcheck", "--external-sources", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_torch_for_the_cpu_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    """A finished environment whose interpreter reports a CPU build of torch."""
    sources = (ROOT / "setup.py").read_bytes() + (ROOT / "launch/constraints.txt").read_bytes()
    (tmp_path / ".mathcpt").write_text(hashlib.sha256(sources).hexdigest() + "\n")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 2.13.0+cpu None\n")
    python.chmod(0o755)
    environment = {**os.environ, "MATHCPT_VENV": str(tmp_path)}
    command = ["bash", ROOT / "launch/gpu.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torch 2.13.0+cpu for CUDA None, not 13" in done.stderr
    assert not done.stdout


def test_pinned_versions_are_allowed_by_the_gpu_extra() -> None:
    constraints = (ROOT / "launch/constraints.txt").read_text()
    pins = dict(re.findall(r"^(transformer-engine\S*)==([\d.]+)$", constraints, re.M))
    (found,) = re.findall(r'"(transformer-engine\[.*?)"', (ROOT / "setup.py").read_text())
    wanted, version = Requirement(found), pins["transformer-engine"]
    parts = ("transformer-engine", "transformer-engine-cu13", "transformer-engine-torch")
    assert pins == dict.fromkeys(parts, version), "its parts refuse other versions of each other"
    assert version in wanted.specifier
    assert "2.13.0" not in wanted.specifier, "does not load with the cuBLAS of the pinned torch"
    assert wanted.extras == {"core-cu13", "pytorch"}


def test_the_cluster_names_the_image_that_the_dockerfile_makes() -> None:
    text, image = (ROOT / "launch/Dockerfile").read_text(), load_cluster("h100_pyxis").container
    (tag,) = re.findall(r"^FROM nvcr.io/nvidia/pytorch:(\S+)$", text, re.M)
    assert image.image.endswith(f"/megatron_mathcpt-{tag}.sqsh")


def test_the_proof_distinguishes_an_fp8_product_from_bf16() -> None:
    """FP8 is emulated by torch's rounding, without Transformer Engine."""
    proof = runpy.run_path(str(ROOT / "launch/prove_gpu.py"))
    relative_error, (low, high) = proof["relative_error"], proof["FP8_ERRORS"]
    left, right = torch.randn(64, 256).bfloat16(), torch.randn(128, 256).bfloat16()

    def rounded(values: torch.Tensor) -> torch.Tensor:
        scale = 448 / values.abs().max().float()
        return (values * scale).to(torch.float8_e4m3fn).double() / scale

    assert low < relative_error(rounded(left) @ rounded(right).T, left, right) < high
    assert relative_error(left @ right.T, left, right) < low
    assert relative_error(torch.zeros(64, 128), left, right) == 1
