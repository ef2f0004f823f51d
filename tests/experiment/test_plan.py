"""What `dry-run` prints of the study and its runs, on a machine without a GPU."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.errors import ConfigError

STUDY = Path(__file__).resolve().parents[2] / "configs" / "paper" / "study.yaml"
GPUS = ("--gpus", "64")
FP8 = ("precision.fp8=e4m3", "precision.fp8_recipe=blockwise", "precision.fp8_param_gather=true")


def dry_run(*arguments: object) -> list[str]:
    """The lines that the command prints."""
    words = ["dry-run", *map(str, arguments), *GPUS]
    done = CliRunner().invoke(build_app(), words, env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("run", "cap", "message"),
    [
        (
            "base2",
            1.75,
            "data.max_epochs: 80,390,826,667 tokens of pool 'general' are 1.75 passes over the "
            "45,885,000,000 that it has for training, more than 1.75; ",
        ),
        ("base1_sft", 2.9, "train.train_epochs asks for 3 passes over 'problem_solving', more than 2.9"),
        ("base2", 1.76, ""),
        ("base1_sft", 3, ""),
    ],
)
def test_more_passes_than_the_cap_are_refused(run: str, cap: float, message: str) -> None:
    words = ["dry-run", f"{STUDY}:{run}", f"data.max_epochs={cap}", *GPUS]
    done = CliRunner().invoke(build_app(), words)
    if message:
        assert isinstance(done.exception, ConfigError) and message in str(done.exception)
    else:
        assert done.exit_code == 0, done.output


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
    assert len([name for name in rows if name]) == 7 + 16 + 10 + 3 * 35 + 1
    assert [cell.strip() for cell in rows["base2"].split("│")[2:-1]] == ["corpus_base", "to do"]
    costs = {line.split()[0]: line.split() for line in lines if "TP1 PP1" in line}
    assert len(costs) == 35
    # 6 x 6.74e9 x 104.9e9 FLOP and attention are 4.6e21, which at 989 TFLOP/s
    # and a third to two thirds of it takes:
    assert costs["base2"][1:3] == ["25,000", "104.9B"]
    assert 1_900 < number(costs["base2"][-1]) < 3_900
    hours = sum(number(cells[-1]) for cells in costs.values())
    assert abs(number(lines[-1].split(" ")[0]) - hours) < len(costs)
    assert f": {hours / 64 / 24:.1f} days on 64; checkpoints of up to " in lines[-1]
    assert max(map(len, lines)) <= 150
    name, mixed = "", dict[str, list[list[str]]]()
    for line in lines:
        if "B (" in line:
            name = line.split()[0] if "TP1 PP1" in line else name
            cells = line.split("TP1")[0].split()
            mixed.setdefault(name, []).append(cells[-4:])
    # 104.8576B by share, over 95 % of the pool: 104.8576 x 48.3 / 63 = 80.39, which is 1.752 of 45.885.
    assert mixed["base1"] == [
        ["general", "77%", "80.39B", "(1.75)"],
        ["math_corpus", "23%", "24.47B", "(1.75)"],
    ]
    assert mixed["base2"][2] == ["problem_solving", "11%", "11.98B", "(1.75)"]  # x 7.2 / 63, of 6.84
    assert mixed["mix_3_7"][2] == ["problem_solving", "16%", "17.13B", "(2.50)"]  # x 10.29 / 63, of 6.84
    # 3 x 0.95 x 7.2B = 20.52B in steps of 256 x 4096: 19,569.4
    assert (costs["base1_sft"][1], mixed["base1_sft"]) == (
        "19,570",
        [["problem_solving", "100%", "20.52B", "(3.00)"]],
    )
    assert not (tmp_path / "out").exists()
