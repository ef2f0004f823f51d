"""What `dry-run` prints of the study's runs and its grid, on a machine without a GPU."""

import sys
from pathlib import Path

import pytest

from megatron_mathcpt.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--gpus", "64", "--expected", "configs/paper/pools.yaml"]
BASE2 = "configs/paper/base2.yaml"
FP8 = ["precision.fp8=e4m3", "precision.fp8_recipe=blockwise", "precision.fp8_param_gather=true"]


def experiment(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of the command, run in this process as from the shell."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(sys, "argv", ["mathcpt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_overrides_cost_a_run_as_its_file_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def cost(*arguments: str) -> list[str]:
        assert experiment(monkeypatch, "dry-run", *arguments, *OPTIONS) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if "TP1 PP1" in line)
        return row.split()[1:]

    plain, twin = cost(BASE2), cost("configs/paper/base2_fp8.yaml")
    assert cost(BASE2, *FP8) == twin
    assert float(twin[-1].replace(",", "")) < 0.85 * float(plain[-1].replace(",", ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([BASE2, "precision.fp8=e4m3"], "fp8 needs fp8_recipe"),
        ([BASE2, "precision.fp9=e4m3"], "precision.fp9: unknown key; did you mean 'fp8'?"),
        ([BASE2, "train.seq_length=8k"], "train.seq_length: Input should be a valid integer"),
        (["precision.fp8=e4m3"], "give the YAML file of an experiment too"),
        ([BASE2, "precision.fp8=e4m3", "precision.fp8_recipe=mxfp8"], "needs Blackwell"),
    ],
)
def test_overrides_are_as_strict_as_in_training(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment(monkeypatch, "dry-run", *arguments, *OPTIONS) == 2
    assert message in capsys.readouterr().err


def test_overrides_cost_a_grid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["dry-run", "configs/paper/grid.yaml", "--out", str(tmp_path), "--benchmarks", str(tmp_path)]
    command += ["--only", "base2", "--expected", "configs/paper/pools.yaml"]

    def hours(*arguments: str) -> float:
        assert experiment(monkeypatch, *command, *arguments) == 0
        return float(capsys.readouterr().out.splitlines()[-1].split(" ")[0].replace(",", ""))

    assert hours("--gpus", "64", *FP8) < 0.85 * hours("--gpus", "64")
    assert experiment(monkeypatch, *command, *FP8) == 2
    assert "changes what runs cost, so give --gpus too" in capsys.readouterr().err


def test_the_studys_grid_with_its_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["dry-run", "configs/paper/grid.yaml", "--out", str(tmp_path / "out"), *OPTIONS]
    assert experiment(monkeypatch, *command, "--benchmarks", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert len([name for name in rows if name]) == 6 + 7 + 3 * 32 + 1
    cells = [cell.strip() for cell in rows["base2"].split("│")[2:-1]]
    assert cells[:4] == ["corpus_base", "to do", "25,000", "104.9B"]
    # 6 x 6.74e9 x 104.9e9 FLOP and attention are 4.6e21; at 989 TFLOP/s and a third to two thirds of it.
    assert 1_900 < float(cells[5].replace(",", "")) < 3_900
    total = float(lines[-1].split(" ")[0].replace(",", ""))
    hours = [float(line.split("│")[-2].replace(",", "")) for line in rows.values() if "B │" in line]
    assert len(hours) == 32
    assert abs(total - sum(hours)) < len(hours)
    assert not (tmp_path / "out").exists()
