"""A sweep over a run's checkpoints: scores, comparisons with the first, table and curve."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.experiment import sweep
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.evaluation_folder import Sample, SampleScore, load_results, samples_path
from megatron_mathcpt.formats.files import read_rows
from megatron_mathcpt.report.page import load_scores
from tests.support.report_folder import EN, paired_outcomes, write_evaluation

STEPS = ("step_00000100", "step_00000200")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two checkpoints whose evaluations come out as `EN`: 4 and 12 of 20 right."""
    for name in STEPS:
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    right = dict(zip(STEPS, paired_outcomes(EN), strict=True))

    def evaluate(model: Path, *_: Any) -> None:
        bits = 1.25 if model.name == STEPS[0] else 0.875
        write_evaluation(
            tmp_path / "sweep", model.name, {"sums": right[model.name]}, {"sums": [bits, bits + 0.5] * 10}
        )
        folder = tmp_path / "sweep" / model.name / "evaluation"
        found, rows = load_results(folder), read_rows(samples_path(folder, "sums"), Sample)
        score = SampleScore(value=bits + 0.25, stderr=0.0625)
        tasks = {"sums": found.tasks["sums"].model_copy(update={"bits_per_byte": score})}
        changed = found.model_copy(update={"tasks": tasks})
        evaluation_folder.write_evaluation(folder, changed, {"sums": rows}, inputs={}, config={})

    monkeypatch.setattr(sweep, "evaluate", evaluate)
    monkeypatch.setattr(sweep, "checkpoint_manifest", lambda path: int(path.name.removeprefix("step_")))
    monkeypatch.setattr(sweep, "checkpoint_counts", lambda n: SimpleNamespace(consumed_tokens=n * 1000))
    return tmp_path / "run"


def test_each_checkpoint_is_compared_with_the_first(run: Path) -> None:
    out = run.parent / "sweep"
    sweep.sweep(run, {"sums": run}, EvaluationConfig(tasks=("sums",)), out)
    rows, (sentence, of_bits) = load_scores(out / "report")
    assert rows[:2] == [
        ("sums", STEPS[0], "20.0 ± 9.2", "1.500"),
        ("sums", STEPS[1], "60.0 ± 11.2", "1.125"),
    ]
    assert sentence.startswith("step_00000200 answers more than step_00000100: 12 against 4 of 20")
    assert of_bits.startswith(
        "step_00000200 needs fewer bits per byte than step_00000100: 1.125 against 1.500"
    )
    # with 6 % of room on each side, of an axis of 380 from 46 to the right and of 200 from 212 upwards
    for name, path in {
        "accuracy": "M66.36,201.29L405.64,22.71",
        "bits": "M66.36,22.71L405.64,201.29",
    }.items():
        assert f'd="{path}"' in (out / f"{name}.svg").read_text()


def test_only_the_first_process_reads_what_it_alone_writes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "evaluate", lambda *_: None)  # the first process has not written yet
    monkeypatch.setenv("RANK", "1")
    sweep.sweep(run, {"sums": run}, EvaluationConfig(tasks=("sums",)), run.parent / "sweep")
    assert not (run.parent / "sweep").exists()
