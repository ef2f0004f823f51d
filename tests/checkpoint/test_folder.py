"""Names of checkpoints, what counts as complete, and what goes when."""

import shutil
from pathlib import Path

import pytest

from megatron_mathcpt.checkpoint import folder
from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.manifest import write_manifest


def make(run: Path, step: int, kind: str = "checkpoint") -> Path:
    path = folder.checkpoint_path(run, step)
    writing = folder.begin(path)
    (writing / "weights").write_text(str(step))
    write_manifest(writing, kind, inputs={}, counts={"step": step}, config={})
    folder.commit(path)
    return path


def test_the_newest_is_found_by_run_and_by_name(tmp_path: Path) -> None:
    first, second = make(tmp_path, 9), make(tmp_path, 100)
    assert folder.checkpoint_paths(tmp_path) == [second, first]
    assert folder.newest_checkpoint(tmp_path) == second
    assert folder.newest_checkpoint(first) == first
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000100\n"


def test_a_save_cut_short_is_never_found_and_is_removed_by_the_next(tmp_path: Path) -> None:
    first = make(tmp_path, 1)
    writing = folder.begin(folder.checkpoint_path(tmp_path, 2))
    (writing / "weights").write_text("half")
    assert folder.newest_checkpoint(tmp_path) == first
    make(tmp_path, 3)
    assert not writing.exists()


def test_the_newest_stay(tmp_path: Path) -> None:
    kept = [make(tmp_path, step) for step in (1, 2, 3, 4)][2:]
    retention = folder.Retention(2, verified={path.name for path in kept})
    folder.prune(folder.checkpoint_paths(tmp_path), retention)
    assert folder.checkpoint_paths(tmp_path) == kept[::-1]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_nothing_goes_before_newer_ones_are_verified(tmp_path: Path) -> None:
    paths = [make(tmp_path, step) for step in (1, 2, 3, 4)][::-1]
    folder.prune(paths, folder.Retention(2, verified={paths[0].name}))
    assert folder.checkpoint_paths(tmp_path) == paths
    folder.prune(paths, folder.Retention(2, verified={paths[0].name, paths[2].name}))
    assert folder.checkpoint_paths(tmp_path) == paths[:3]


def test_every_nth_and_the_best_stay(tmp_path: Path) -> None:
    losses = {10: 2.5, 20: 2.1, 30: 2.3, 40: 2.2, 50: 2.4}
    paths = []
    for step, loss in losses.items():
        path = folder.checkpoint_path(tmp_path, step)
        writing = folder.begin(path)
        counts = {"step": step, "validation": {"math": loss}}
        write_manifest(writing, "checkpoint", inputs={}, counts=counts, config={})
        folder.seal(writing)
        folder.commit(path)
        paths.insert(0, path)
    folder.prune(paths, folder.Retention(1, every=30, best=("math",), verified={paths[0].name}))
    assert [folder.step_of(path) for path in folder.checkpoint_paths(tmp_path)] == [50, 30, 20]


def test_space_is_asked_for_before_the_first_save(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    folder.check_space(tmp_path, free // 4, 2)
    with pytest.raises(CheckpointError, match=r"bytes free, [\d,]+ needed for 8 checkpoints"):
        folder.check_space(tmp_path, free // 4, 8)


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        folder.newest_checkpoint(tmp_path)
    write_manifest(tmp_path, "corpus", inputs={}, counts={}, config={})
    with pytest.raises(ManifestError, match="of kind 'corpus'"):
        folder.newest_checkpoint(tmp_path)


def test_room_is_for_one_more_like_the_newest(tmp_path: Path) -> None:
    assert folder.has_room(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    for step, size in ((1, free + (1 << 30)), (2, 1000)):
        path = folder.checkpoint_path(tmp_path, step)
        path.mkdir(parents=True)
        with (path / "shard").open("wb") as file:
            file.truncate(size)  # sparse: takes no room
        assert folder.has_room(tmp_path) == (size == 1000)
