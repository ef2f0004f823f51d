"""Names of checkpoints, what counts as complete, and what goes when."""

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
    folder.prune(tmp_path, keep=2)
    assert folder.checkpoint_paths(tmp_path) == kept[::-1]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        folder.newest_checkpoint(tmp_path)
    write_manifest(tmp_path, "corpus", inputs={}, counts={}, config={})
    with pytest.raises(ManifestError, match="of kind 'corpus'"):
        folder.newest_checkpoint(tmp_path)
