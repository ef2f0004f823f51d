"""What the terminal tables show, against the search they are made from."""

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from megatron_mathcpt.planner.layout import Training
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.search import search
from megatron_mathcpt.planner.shapes import load_shape
from megatron_mathcpt.planner.text import describe

ROOT = Path(__file__).resolve().parents[2]
H100 = load_machine("h100")
SHAPE = load_shape("llama3-8b")
TRAINING = Training(seq_length=8192, global_batch_size=128)


def test_tables_show_days_and_gpu_hours() -> None:
    result = search(SHAPE, TRAINING, 8, H100)
    console = Console(file=io.StringIO(), width=200)
    for part in describe(SHAPE, TRAINING, H100, result, train_tokens=1e12, top=3):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    best = result.plans[0]
    hours = 1e12 / (128 * 8192) * best.time.total / 3600
    row = next(line for line in text.splitlines() if best.layout.name in line)
    assert f"{hours / 24:.2f}" in row
    assert f"{8 * hours:,.0f}" in row
    assert f"{len(result.plans)} layouts fit, {len(result.misfits)} do not." in text
    assert "8.03 B parameters, 51.5 GFLOP a token with causal attention (57.9 with full)" in text


def test_command_ranks_layouts_and_refuses_in_one_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "plan_layout.py"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
        )

    found = run("llama2-7b", "--gpus", "8", "--global-batch-size", "128")
    assert found.returncode == 0
    assert "Layouts that fit, fastest first" in found.stdout
    fp8 = ("precision.fp8=e4m3", "precision.fp8_recipe=blockwise")
    found = run("llama2-7b", *fp8, "--gpus", "8", "--global-batch-size", "128")
    assert "precision.fp8_recipe=blockwise" in found.stdout
    assert "FP8 casts" in found.stdout
    wrong = run("llama2-7b", "precision.fp9=e4m3", "--gpus", "8")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: search: precision.fp9: unknown key; did you mean 'fp8'?")
    wrong = run("llama2-7b", "--gpus", "8", "--hardware", "tpu")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: hardware 'tpu': unknown; known are a100, b200, h100, h200\n"
