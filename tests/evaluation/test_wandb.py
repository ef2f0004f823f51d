"""Scores of a trained run's weights are added to the one W&B run that its training has written."""

import hashlib
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.evaluation.evaluate import _log_scores, evaluate
from megatron_mathcpt.formats import run_folder
from megatron_mathcpt.formats.evaluation_folder import Results
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path, logged_run, wandb_run
from tests.support.json_lines import write_json_lines

CONFIG: dict[str, Any] = {"name": "mine", "logging": {"wandb_project": "maths"}}
RESULTS = Results.model_validate(
    {
        "model": "mine",
        "tasks": {
            name: {"n": 4, "correct": right, "accuracy": right / 4, "stderr": 0.2, "data_sha256": "0"} | more
            for name, right, more in (
                ("gsm8k", 3, {"bits_per_byte": {"value": 0.75, "stderr": 0.1}}),
                ("math_few_shot", 1, {}),
            )
        },
    }
)


def write_run(folder: Path, config: dict[str, Any], *, finished: bool = True) -> Path:
    """A run with checkpoints of steps 8 and 16, and an export of the second."""
    for step in (8, 16):
        path = checkpoint_path(folder, step)
        write_manifest(run_folder.begin(path), "checkpoint", inputs={}, counts={"step": step}, config=config)
        run_folder.commit(path)
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{}")
    write_manifest(folder / "hf", "hf", inputs={}, counts={"step": 16}, config={})
    if finished:
        write_manifest(folder, run_folder.RUN, inputs={}, counts={"step": 16}, config=config, outputs={})
    return folder


def test_weights_know_their_run_and_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", CONFIG)
    wanted = {"": 16, "hf": 16, "checkpoints/step_00000008": 8, "checkpoints/step_00000016": 16}
    for name, step in wanted.items():
        assert logged_run(run / name) == (run, CONFIG, step), name
    place = wandb_run(CONFIG, run, tmp_path)
    # The id of all versions: runs that are in W&B already are found again.
    text = json.dumps(["mine", str(run.resolve())], sort_keys=True)
    assert place == {"project": "maths", "name": "mine", "dir": str(tmp_path), "id": place["id"]}
    assert len(place["id"]) == 16 and place["id"] in {
        hashlib.sha256(form.encode()).hexdigest()[:16] for form in (text, text.replace(", ", ","))
    }
    # Not of a run in training, without a project, an average, or a model of others.
    assert logged_run(write_run(tmp_path / "training", CONFIG, finished=False)) is None
    assert logged_run(write_run(tmp_path / "plain", {"name": "plain", "logging": {}})) is None
    assert logged_run(write_run(tmp_path / "mean", {"average": ["a", "b"]})) is None
    assert logged_run(tmp_path) is None and logged_run(Path("owner/name")) is None


def test_accuracy_and_bits_of_each_task_are_logged() -> None:
    assert RESULTS.scalars() == {
        "evaluation/gsm8k/accuracy": 0.75,
        "evaluation/gsm8k/bits_per_byte": 0.75,
        "evaluation/math_few_shot/accuracy": 0.25,
    }


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_without_wandb_it_is_said_before_the_model_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    run = write_run(tmp_path / "mine", CONFIG)
    items = write_json_lines(tmp_path / "sums.jsonl", [{"id": "1", "question": "1+1?", "answer": "2"}])
    with pytest.raises(MathCptError):  # the run has no weights
        evaluate(run, {"sums": items}, EvaluationConfig(tasks=("sums",)), tmp_path / "out")
    assert "W&B will not get its scores" in caplog.text and "megatron_mathcpt[wandb]" in caplog.text


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_scores_are_added_to_the_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run, out = write_run(tmp_path / "mine", CONFIG), tmp_path / "evaluation"
    out.mkdir()
    for _ in range(2):
        _log_scores(logged_run(run), RESULTS, out)
    (written,) = (out / ".wandb").glob("offline-run-*")
    assert written.name.endswith("-" + wandb_run(CONFIG, run, out)["id"])
    assert (out / ".wandb" / "logged").is_file()
