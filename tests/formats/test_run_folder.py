"""Names of checkpoints, what counts as complete, what goes when, which is chosen."""

import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.formats import run_folder
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes, write_manifest


def make(run: Path, step: int, **counts: object) -> Path:
    """A sealed checkpoint with a file of the optimizer's."""
    path = run_folder.checkpoint_path(run, step)
    writing = run_folder.begin(path)
    (writing / "weights").write_text(str(step))
    (writing / "optimizer__0_0.distcp").write_text("moments")
    counts |= {"step": step}
    manifest = write_manifest(writing, "checkpoint", inputs={}, counts=counts, config={})
    run_folder.write_light_manifest(writing, manifest)
    run_folder.seal(writing)
    run_folder.commit(path)
    return path


def test_the_newest_is_found_by_run_and_by_name(tmp_path: Path) -> None:
    first, second = make(tmp_path, 9), make(tmp_path, 100)
    assert run_folder.checkpoint_paths(tmp_path) == [second, first]
    assert run_folder.newest_checkpoint(tmp_path) == second
    assert run_folder.newest_checkpoint(first) == first
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000100\n"


def test_a_save_cut_short_is_never_found_and_is_removed_by_the_next(tmp_path: Path) -> None:
    first = make(tmp_path, 1)
    writing = run_folder.begin(run_folder.checkpoint_path(tmp_path, 2))
    (writing / "weights").write_text("half")
    assert run_folder.newest_checkpoint(tmp_path) == first
    make(tmp_path, 3)
    assert not writing.exists()


def test_the_newest_stay_and_nothing_goes_before_they_are_verified(tmp_path: Path) -> None:
    paths = [make(tmp_path, step) for step in (1, 2, 3, 4)][::-1]
    run_folder.prune(tmp_path, run_folder.Retention(2, verified={paths[0].name}))
    assert run_folder.checkpoint_paths(tmp_path) == paths
    run_folder.prune(tmp_path, run_folder.Retention(2, verified={paths[0].name, paths[2].name}))
    assert run_folder.checkpoint_paths(tmp_path) == paths[:3]
    run_folder.prune(tmp_path, run_folder.Retention(2, verified={paths[0].name, paths[1].name}))
    assert run_folder.checkpoint_paths(tmp_path) == paths[:2]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_every_nth_and_the_best_stay(tmp_path: Path) -> None:
    losses = {10: 2.5, 20: 2.1, 30: 2.3, 40: 2.2, 50: 2.4}
    paths = [make(tmp_path, step, validation={"math": loss}) for step, loss in losses.items()]
    run_folder.prune(tmp_path, run_folder.Retention(1, every=30, best=("math",), verified={paths[-1].name}))
    assert [run_folder.step_of(path) for path in run_folder.checkpoint_paths(tmp_path)] == [50, 30, 20]


def test_beside_the_newest_only_weights_stay(tmp_path: Path) -> None:
    paths = [make(tmp_path, step) for step in (10, 20, 30, 40)][::-1]
    fingerprints = [run_folder.load_sealed(path).fingerprint() for path in paths]
    run_folder.prune(tmp_path, run_folder.Retention(1, every=10, optimizer=True, verified={paths[0].name}))
    assert not any(run_folder.is_weights_only(run_folder.load_sealed(path)) for path in paths)
    run_folder.prune(tmp_path, run_folder.Retention(2, every=10, verified={paths[0].name, paths[1].name}))
    manifests = [run_folder.load_sealed(path) for path in paths]
    assert [run_folder.is_weights_only(manifest) for manifest in manifests] == [False, False, True, True]
    assert [manifest.fingerprint() for manifest in manifests] == fingerprints
    for path in paths[2:]:
        files = {file.name for file in path.iterdir()}
        assert files == {"weights", "manifest.json", "manifest.sha256"}
        line = (path / "manifest.sha256").read_text()
        assert line == f"{hash_file(path / 'manifest.json')}  manifest.json\n"
        verify_hashes(path, run_folder.load_sealed(path))
    (tmp_path / "checkpoints" / "step_00000040" / "manifest.json").write_text("{")
    (tmp_path / "checkpoints" / "step_00000030" / "weights").unlink()
    assert run_folder.newest_readable(tmp_path) is None


@pytest.mark.parametrize("calls", range(9))
def test_a_kill_while_the_optimizer_is_dropped_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Killed before the n-th change of the disk; what is found is whole, and the next start finishes it."""
    path, left = make(tmp_path, 1), [calls]

    def or_die(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", or_die(os.fsync))
        patch.setattr(Path, "replace", or_die(Path.replace))
        patch.setattr(Path, "unlink", or_die(Path.unlink))
        with suppress(KeyboardInterrupt):
            run_folder.drop_optimizer(path)
    assert left[0] == 0 or calls > 5
    found = run_folder.load_sealed(path)
    assert run_folder.is_weights_only(found) == (calls > 0)
    verify_hashes(path, found)
    run_folder.drop_optimizer(path)
    assert run_folder.is_weights_only(run_folder.load_sealed(path))
    assert not (path / "optimizer__0_0.distcp").exists()


def test_who_reads_weights_does_not_read_the_optimizer(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    manifest = run_folder.load_sealed(path)
    (path / "optimizer__0_0.distcp").unlink()  # as it may go while weights are read
    verify_hashes(path, manifest)
    (path / "weights").write_text("2")
    with pytest.raises(ManifestError, match="weights: checksum differs"):
        verify_hashes(path, manifest)


@pytest.mark.parametrize("name", ["load_manifest", "hash_file"])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_checkpoint_that_becomes_weights_only_while_it_is_read_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    path, original, left = make(tmp_path, 1), getattr(run_folder, name), [calls]

    def dropping(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            run_folder.drop_optimizer(path)
        return original(*args)

    monkeypatch.setattr(run_folder, name, dropping)
    assert run_folder.load_sealed(path).counts["step"] == 1


def test_a_damaged_checkpoint_keeps_its_optimizer(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    (path / "weights_only.json").write_text("{}")
    with pytest.raises(ManifestError, match="checksum differs"):
        run_folder.load_sealed(path)
    run_folder.drop_optimizer(path)
    assert (path / "optimizer__0_0.distcp").exists()


def test_space_is_asked_for_before_the_first_save(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    run_folder.check_space(tmp_path, free // 2)
    with pytest.raises(CheckpointError, match=r"bytes free, [\d,]+ needed for what its checkpoints"):
        run_folder.check_space(tmp_path, 2 * free)


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        run_folder.newest_checkpoint(tmp_path)
    write_manifest(tmp_path, "corpus", inputs={}, counts={}, config={})
    with pytest.raises(ManifestError, match="of kind 'corpus'"):
        run_folder.newest_checkpoint(tmp_path)


def test_room_is_for_one_more_like_the_newest(tmp_path: Path) -> None:
    assert run_folder.has_room(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    for step, size in ((1, free + (1 << 30)), (2, 1000)):
        path = run_folder.checkpoint_path(tmp_path, step)
        path.mkdir(parents=True)
        with (path / "shard").open("wb") as file:
            file.truncate(size)  # sparse: takes no room
        assert run_folder.has_room(tmp_path) == (size == 1000)


def test_counts_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Only what was set is written; a loss that is no number is null there."""
    asked = {"general": run_folder.SourceTokens(asked=9, seen=7)}
    done = run_folder.RunCounts(
        step=2,
        steps=2,
        consumed_samples=4,
        consumed_tokens=7,
        tokens_by_source=asked,
        final_validation={"a": math.nan},
    )
    manifest = write_manifest(tmp_path, "run", inputs={}, counts=done, config={})
    assert "skipped_steps" not in manifest.counts
    found = run_folder.RunCounts.model_validate(load_manifest(tmp_path, "run").counts)
    assert repr(found) == repr(done)  # no number equals itself


LOSSES = [
    (10, {"a": 3.0, "b": 1.0}),
    (20, {"a": 1.0, "b": 1.0}),
    (30, {"a": 2.5, "b": 1.2}),
    (20, {"a": 2.0, "b": 1.0}),  # done again after a stop
    (40, {"a": 1.0, "b": 2.0}),
]


LOWEST = "lowest_validation_loss"


def finish(folder: Path, choose: str) -> None:
    write_manifest(folder, "run", inputs={}, counts={}, config={"checkpoint": {"choose": choose}})


def finished_run(folder: Path, choose: str) -> Path:
    for step in (10, 20, 30, 40):
        make(folder, step)
    rows = [{"step": step, "consumed_tokens": step, "validation": losses} for step, losses in LOSSES]
    rows[1:1] = [{"step": 15, "consumed_tokens": 15, "loss": 0.1}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 50, "valida'
    (folder / "metrics.jsonl").write_text(text)
    finish(folder, choose)
    return folder


def test_lowest_mean_over_the_sets_the_first_of_equals(tmp_path: Path) -> None:
    run = finished_run(tmp_path, LOWEST)
    assert run_folder.chosen_checkpoint(run) == run_folder.checkpoint_path(run, 20)  # 2.0, 1.5, 1.85, 1.5
    first = run_folder.checkpoint_path(run, 10)
    assert run_folder.chosen_checkpoint(first) == first


def test_newest_by_default_and_while_a_run_is_not_finished(tmp_path: Path) -> None:
    newest = finished_run(tmp_path / "a", "newest")
    assert run_folder.step_of(run_folder.chosen_checkpoint(newest)) == 40
    unfinished = finished_run(tmp_path / "b", LOWEST)
    (unfinished / "manifest.json").unlink()
    assert run_folder.step_of(run_folder.chosen_checkpoint(unfinished)) == 40


def test_a_choice_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path, LOWEST)
    run_folder.checkpoint_path(run, 20).rename(tmp_path / "gone")
    finish(run, LOWEST)
    with pytest.raises(CheckpointError, match=r"step_00000020: not there, .* raise checkpoint.keep"):
        run_folder.chosen_checkpoint(run)
    (run / "metrics.jsonl").write_text('{"step": 1, "consumed_tokens": 1, "loss": 2.0}\n')
    finish(run, LOWEST)
    with pytest.raises(CheckpointError, match="no validation loss to choose by"):
        run_folder.chosen_checkpoint(run)
