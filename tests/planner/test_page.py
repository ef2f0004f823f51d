"""What the terminal tables and the page show, against the search they are made from."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from megatron_mathcpt.planner.layout import Training
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.page import Grid, render_page
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


def test_page_holds_every_case_and_needs_nothing_else() -> None:
    odd = replace(SHAPE, name="</script><b>")
    grid = Grid([SHAPE, odd], [8, 16], [128], ["bf16"], TRAINING, start_gpus=16)
    html = render_page(grid, H100, "h100", "body { color: red; }")
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", html)
    assert "</script><b>" not in html
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert data["start"] == ["llama3-8b", 16, 128, "bf16"]
    assert len(data["cases"]) == 4
    case = data["cases"]["llama3-8b|8|128|bf16"]
    best = search(SHAPE, TRAINING, 8, H100).plans[0]
    assert case["plans"][0]["name"] == best.layout.name
    assert next(iter(case["plans"][0]["terms"])) == "matrix products"
    for plan in case["plans"]:
        assert sum(plan["terms"].values()) == pytest.approx(plan["seconds"], abs=1e-3)
        fullest = max(sum(stage["parts"].values()) for stage in plan["stages"])
        assert fullest == pytest.approx(plan["gib"], abs=0.05)


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
