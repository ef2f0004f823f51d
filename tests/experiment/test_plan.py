"""What `dry-run` prints of the study's runs and its grid, on a machine without a GPU."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mathcpt.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
GRID, BASE2 = "configs/paper/grid.yaml", "configs/paper/base2.yaml"
POOLS = ("--expected", "configs/paper/pools.yaml")
GPUS = ("--gpus", "64")
FP8 = ("precision.fp8=e4m3", "precision.fp8_recipe=blockwise", "precision.fp8_param_gather=true")


Printed = Callable[..., list[str]]


@pytest.fixture
def dry_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Lines of the command with these arguments, run in this process as from the shell."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "150")

    def call(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["mathcpt", "dry-run", *map(str, arguments), *POOLS])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out.splitlines()

    return call


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_overrides_cost_a_run_as_its_file_would(dry_run: Printed) -> None:

    def cost(*arguments: str) -> list[str]:
        lines = dry_run(*arguments, *GPUS)
        return next(line for line in lines if "TP1 PP1" in line).split()[1:]

    plain, twin = cost(BASE2), cost("configs/paper/base2_fp8.yaml")
    assert cost(BASE2, *FP8) == twin
    assert number(twin[-1]) < 0.85 * number(plain[-1])


def test_the_studys_grid_with_its_cost(dry_run: Printed, tmp_path: Path) -> None:
    grid = (GRID, "--out", tmp_path / "out", "--benchmarks", tmp_path, *GPUS)
    lines = dry_run(*grid)
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert len([name for name in rows if name]) == 6 + 7 + 3 * 32 + 1
    cells = [cell.strip() for cell in rows["base2"].split("│")[2:-1]]
    assert cells[:4] == ["corpus_base", "to do", "25,000", "104.9B"]
    # 6 x 6.74e9 x 104.9e9 FLOP and attention are 4.6e21; at 989 TFLOP/s and a third to two thirds of it.
    assert 1_900 < number(cells[5]) < 3_900
    hours = [number(line.split("│")[-2]) for line in rows.values() if "B │" in line]
    assert len(hours) == 32
    assert abs(number(lines[-1].split(" ")[0]) - sum(hours)) < len(hours)
    assert not (tmp_path / "out").exists()
    alone = [number(dry_run(*grid, "--only", "base2", *more)[-1].split(" ")[0]) for more in ((), FP8)]
    assert alone[1] < 0.85 * alone[0]
