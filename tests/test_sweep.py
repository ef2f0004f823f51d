"""A sweep over a run's checkpoints: each is scored into a folder of results, and compared with the first."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.report.page import load_scores
from tests.support.report_folder import EN, paired_outcomes, write_evaluation

EVALUATE = "megatron_mathcpt.evaluation.evaluate.evaluate"
STEPS = ("step_00000100", "step_00000200")


def sweep(folder: Path, rank: str) -> str:
    words = f"evaluate --model {folder / 'run'} --out {folder / 'sweep'} --task sums=f --sweep"
    done = CliRunner().invoke(build_app(), words, env={"RANK": rank, "COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two checkpoints whose evaluations come out as `EN`: 4 and 12 of 20 right."""
    for name in STEPS:
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    right = dict(zip(STEPS, paired_outcomes(EN), strict=True))

    def evaluate(model: Path, *_: Any) -> None:
        bits = 1.25 if model.name == STEPS[0] else 0.875
        write_evaluation(
            tmp_path / "sweep", model.name, {"sums": right[model.name]}, {"sums": [bits, bits + 0.5] * 10}
        )

    monkeypatch.setattr(EVALUATE, evaluate)


def test_each_checkpoint_is_compared_with_the_first(tmp_path: Path) -> None:
    shown = sweep(tmp_path, "0")
    rows, (sentence, of_bits) = load_scores(tmp_path / "sweep" / "report")
    assert rows[:2] == [
        ("sums", STEPS[0], "20.0 (8.1 to 41.6)", "1.500"),
        ("sums", STEPS[1], "60.0 (38.7 to 78.1)", "1.125"),
    ]
    assert sentence.startswith("step_00000200 answers more than step_00000100: 12 against 4 of 20")
    assert of_bits.startswith(
        "step_00000200 needs fewer bits per byte than step_00000100: 1.125 against 1.500"
    )
    assert f"{sentence}\n{of_bits}\nReport: " in shown


def test_only_the_first_process_reads_what_it_alone_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EVALUATE, lambda *_: None)  # the first process has not written yet
    assert sweep(tmp_path, "1") == ""
    assert not (tmp_path / "sweep").exists()
