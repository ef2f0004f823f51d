import json
from pathlib import Path

import pytest

from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path, chosen_checkpoint, lowest_validation_step

LOSSES = [
    (10, {"a": 3.0, "b": 1.0}),
    (20, {"a": 1.0, "b": 1.0}),
    (30, {"a": 2.5, "b": 1.2}),
    (20, {"a": 2.0, "b": 1.0}),  # done again after a stop
    (40, {"a": 1.0, "b": 2.0}),
]


def finished_run(folder: Path, choose: str) -> Path:
    for step in (10, 20, 30, 40):
        path = checkpoint_path(folder, step)
        path.mkdir(parents=True)
        write_manifest(path, "checkpoint", inputs={}, counts={"step": step}, config={})
    rows = [{"step": step, "consumed_tokens": step, "validation": losses} for step, losses in LOSSES]
    rows[1:1] = [{"step": 15, "consumed_tokens": 15, "loss": 0.1}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 50, "valida'
    (folder / "metrics.jsonl").write_text(text)
    write_manifest(folder, "run", inputs={}, counts={}, config={"checkpoint": {"choose": choose}})
    return folder


def test_lowest_mean_over_the_sets_the_first_of_equals(tmp_path: Path) -> None:
    run = finished_run(tmp_path, "lowest_validation_loss")
    assert lowest_validation_step(run / "metrics.jsonl") == 20  # 2.0, 1.5, 1.85, 1.5
    assert chosen_checkpoint(run) == checkpoint_path(run, 20)
    assert chosen_checkpoint(checkpoint_path(run, 10)) == checkpoint_path(run, 10)


def test_newest_by_default_and_while_a_run_is_not_finished(tmp_path: Path) -> None:
    assert chosen_checkpoint(finished_run(tmp_path / "a", "newest")) == checkpoint_path(tmp_path / "a", 40)
    unfinished = finished_run(tmp_path / "b", "lowest_validation_loss")
    (unfinished / "manifest.json").unlink()
    assert chosen_checkpoint(unfinished) == checkpoint_path(unfinished, 40)


def test_a_chosen_checkpoint_that_was_pruned_is_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path, "lowest_validation_loss")
    checkpoint_path(run, 20).rename(tmp_path / "gone")
    write_manifest(
        run, "run", inputs={}, counts={}, config={"checkpoint": {"choose": "lowest_validation_loss"}}
    )
    with pytest.raises(CheckpointError, match=r"step_00000020: not there, .* raise checkpoint.keep"):
        chosen_checkpoint(run)


def test_nothing_to_choose_by(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "consumed_tokens": 1, "loss": 2.0}\n')
    with pytest.raises(CheckpointError, match="no validation loss to choose by"):
        lowest_validation_step(tmp_path / "metrics.jsonl")
