"""The benchmark of the training step, on its CPU path: its figures follow from what it measured."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_figures_follow_from_the_measured_time(tmp_path: Path) -> None:
    command = [sys.executable, "tests/benchmarks/gpu_training.py", "--shape", "tiny", "--steps", "6", "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "measured.json"
    subprocess.run([*command, str(out)], cwd=ROOT, env=environment, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert (found["card"], [row["row"] for row in found["rows"]]) == ("CPU", ["fp32", "bf16"])
    # 4 layers of 256 x 32 x (16 + 8) + 3 x 256 x 704 weights, a head of 1024 x 256, causal attention.
    flops = 6 * (4 * (256 * 32 * 24 + 3 * 256 * 704) + 1024 * 256) + 6 * 4 * 256 * 256
    for row in found["rows"]:
        assert row["tokens_per_second_per_gpu"] == pytest.approx(2 * 256 / row["seconds"])
        assert row["tflops_causal"] == pytest.approx(2 * 256 * flops / row["seconds"] / 1e12)
        assert row["losses"][0] == pytest.approx(math.log(1024), abs=0.1), "random weights know nothing"
        assert len(row["losses"]) == 6
