"""What `plan` prints of the study's grid, on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_studys_grid_with_its_cost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_mathcpt.experiment", "plan", "configs/paper/grid.yaml"]
    command += ["--out", str(tmp_path / "out"), "--benchmarks", str(tmp_path), "--gpus", "64"]
    command += ["--expected", "configs/paper/pools.yaml"]
    environment = {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("│")}
    assert len([name for name in rows if name]) == 6 + 7 + 3 * 32 + 1
    cells = [cell.strip() for cell in rows["base2"].split("│")[2:-1]]
    assert cells[:4] == ["corpus_base", "to do", "25,000", "104.9B"]
    # 6 x 6.74e9 x 104.9e9 FLOP and attention are 4.6e21; at 989 TFLOP/s and a third to two thirds of it.
    assert 1_900 < float(cells[5].replace(",", "")) < 3_900
    total = float(done.stdout.splitlines()[-1].split(" ")[0].replace(",", ""))
    hours = [float(line.split("│")[-2].replace(",", "")) for line in rows.values() if "B │" in line]
    assert len(hours) == 32
    assert abs(total - sum(hours)) < len(hours)
    assert not (tmp_path / "out").exists()
