"""What `dry-run` prints of the study's runs and its grid, on a machine without a GPU."""

from pathlib import Path

from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
GPUS = ("--gpus", "64")
FP8 = ("precision.fp8=e4m3", "precision.fp8_recipe=blockwise", "precision.fp8_param_gather=true")


def dry_run(*arguments: object) -> list[str]:
    """The lines that the command prints."""
    words = ["dry-run", *map(str, arguments), "--expected", str(PAPER / "pools.yaml"), *GPUS]
    done = CliRunner().invoke(build_app(), words, env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_overrides_cost_a_run_as_its_file_would() -> None:
    plain, overridden, twin = (
        next(line for line in dry_run(PAPER / name, *more) if "TP1 PP1" in line).split()[1:]
        for name, more in (("base2.yaml", ()), ("base2.yaml", FP8), ("base2_fp8.yaml", ()))
    )
    assert overridden == twin
    assert number(twin[-1]) < 0.85 * number(plain[-1])


def test_the_studys_grid_with_its_cost(tmp_path: Path) -> None:
    grid = (PAPER / "grid.yaml", "--out", tmp_path / "out", "--benchmarks", tmp_path)
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
