"""What `dry-run` prints of the study and its runs, on a machine without a GPU."""

from pathlib import Path

from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app

STUDY = Path(__file__).resolve().parents[2] / "configs" / "paper" / "study.yaml"
GPUS = ("--gpus", "64")
FP8 = ("precision.fp8=e4m3", "precision.fp8_recipe=blockwise", "precision.fp8_param_gather=true")


def dry_run(*arguments: object) -> list[str]:
    """The lines that the command prints."""
    words = ["dry-run", *map(str, arguments), *GPUS]
    done = CliRunner().invoke(build_app(), words, env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_overrides_cost_a_run_as_its_row_would() -> None:
    plain, overridden, twin = (
        next(line for line in dry_run(f"{STUDY}:{name}", *more) if "TP1 PP1" in line).split()[1:]
        for name, more in (("base2", ()), ("base2", FP8), ("base2_fp8", ()))
    )
    assert overridden == twin
    assert number(twin[-1]) < 0.85 * number(plain[-1])


def test_the_study_with_its_cost(tmp_path: Path) -> None:
    study = (STUDY, "--out", tmp_path / "out", "--benchmarks", tmp_path)
    lines = dry_run(*study)
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert len([name for name in rows if name]) == 6 + 7 + 3 * 32 + 1
    assert [cell.strip() for cell in rows["base2"].split("│")[2:-1]] == ["corpus_base", "to do"]
    costs = {line.split()[0]: line.split() for line in lines if "TP1 PP1" in line}
    assert len(costs) == 32
    # 1.75 passes over 95 % of 48.3B. 6 x 6.74e9 x 104.9e9 FLOP and attention are 4.6e21, which at 989 TFLOP/s
    # and a third to two thirds of it takes:
    assert costs["base2"][1:6] == ["25,000", "104.9B", "general", "77%", "80.39B"]
    assert costs["base2"][6] == "(1.75)"
    assert 1_900 < number(costs["base2"][-1]) < 3_900
    hours = sum(number(cells[-1]) for cells in costs.values())
    assert abs(number(lines[-1].split(" ")[0]) - hours) < len(costs)
    assert not (tmp_path / "out").exists()
