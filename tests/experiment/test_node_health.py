import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_mathcpt.experiment.node_health import gpu_faults, node_faults


@pytest.mark.parametrize(
    ("table", "faults"),
    [
        ("0\n0\n", []),
        ("[N/A]\n0\n", []),
        ("", ["0 GPUs, expected 2"]),
        ("0\n3\n", ["GPU 1: 3 uncorrected memory errors"]),
        ("0\n[Unknown Error]\n", ["GPU 1: [Unknown Error] uncorrected memory errors"]),
    ],
)
def test_answers_of_nvidia_smi(table: str, faults: list[str]) -> None:
    assert gpu_faults(table, 2) == faults


def test_a_sick_node_is_named_on_stdout_alone(tmp_path: Path) -> None:
    """No nvidia-smi, and a folder that is not there."""
    assert node_faults(tmp_path, 0) == []
    assert not list(tmp_path.iterdir())
    command = [sys.executable, "-m", "megatron_mathcpt.experiment.node_health", "--gpus", "8"]
    environment = {"PATH": str(tmp_path), "SLURMD_NODENAME": "node7"}
    options = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run([*command, "--folder", str(tmp_path / "missing")], check=False, **options)
    assert (done.returncode, done.stdout) == (1, "node7\n")
    assert re.match(r"node7: \S+/missing: not writable from here .*nvidia-smi: ", done.stderr)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_torch_cannot_use_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi shows two sound GPUs; the torch of this interpreter has no driver, or no CUDA."""
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\nprintf '0\\n0\\n'\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = node_faults(tmp_path, 2)
    assert fault.startswith("GPU 0: torch: status 1: ")
    assert "CUDA" in fault or "NVIDIA" in fault
