"""A run's folder is read as written; which checkpoints are complete, kept, and chosen."""

import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import CheckpointError, DataError, ManifestError
from megatron_mathcpt.formats import run_folder
from megatron_mathcpt.formats.files import JsonLines
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes, write_manifest
from megatron_mathcpt.formats.run_folder import (
    Retention,
    checkpoint_manifest,
    checkpoint_path,
    checkpoint_paths,
    chosen_checkpoint,
    is_weights_only,
    newest_checkpoint,
    prune,
)

OPTIMIZER = "optimizer__0_0.distcp"


def make(run: Path, step: int, **counts: object) -> Path:
    """A complete checkpoint with a file of the optimizer's."""
    path = checkpoint_path(run, step)
    writing = run_folder.begin(path)
    (writing / "weights").write_text(str(step))
    (writing / OPTIMIZER).write_text("moments")
    write_manifest(writing, "checkpoint", inputs={}, counts=counts | {"step": step}, config={})
    run_folder.commit(path)
    return path


def steps_of(run: Path) -> list[int]:
    return [run_folder.step_of(path) for path in checkpoint_paths(run)]


def test_the_newest_is_found_by_run_and_by_name_and_an_interrupted_save_is_not(tmp_path: Path) -> None:
    first, second = make(tmp_path, 9), make(tmp_path, 100)
    writing = run_folder.begin(checkpoint_path(tmp_path, 200))
    (writing / "weights").write_text("half")
    assert checkpoint_paths(tmp_path) == [second, first]
    assert newest_checkpoint(tmp_path) == second
    assert newest_checkpoint(first) == first
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000100\n"
    make(tmp_path, 300)
    assert not writing.exists()


@pytest.mark.parametrize(
    "pointer", [b"", b"\xff\0", b"step_00000099\n", b"step_00000009\n", b"../elsewhere", None]
)
def test_the_pointer_decides_nothing_and_is_repaired(tmp_path: Path, pointer: bytes | None) -> None:
    """D3: empty, garbage, of a removed or older checkpoint, out of the folder, missing."""
    latest = tmp_path / "checkpoints" / "latest"
    latest.parent.mkdir()

    def damage() -> None:
        latest.unlink(missing_ok=True) if pointer is None else latest.write_bytes(pointer)

    damage()
    assert run_folder.newest_readable(tmp_path) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        chosen_checkpoint(tmp_path)
    make(tmp_path, 9)
    newest = make(tmp_path, 100)
    damage()
    run_folder.check_run_folder(tmp_path)
    for found in (newest_checkpoint, run_folder.newest_readable, chosen_checkpoint):
        assert found(tmp_path) == newest
    make(tmp_path, 200)
    assert latest.read_bytes() == b"step_00000200\n"


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        newest_checkpoint(tmp_path)
    write_manifest(tmp_path, "corpus", inputs={}, counts={}, config={})
    with pytest.raises(ManifestError, match="of kind 'corpus'"):
        newest_checkpoint(tmp_path)


def test_the_newest_are_kept_and_nothing_is_removed_before_they_are_verified(tmp_path: Path) -> None:
    paths = [make(tmp_path, step) for step in (1, 2, 3, 4)][::-1]
    for verified, left in ([0], 4), ([0, 2], 3), ([0, 1], 2):
        prune(tmp_path, Retention(2, verified={paths[n].name for n in verified}))
        assert checkpoint_paths(tmp_path) == paths[:left]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_every_nth_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, loss in ((10, 2.5), (20, 2.1), (30, 2.3), (40, 2.2), (50, 2.4)):
        newest = make(tmp_path, step, validation={"math": loss})
    prune(tmp_path, Retention(1, every=30, best=("math",), verified={newest.name}))
    assert steps_of(tmp_path) == [50, 30, 20]


def test_all_but_the_newest_keep_only_weights(tmp_path: Path) -> None:
    paths = [make(tmp_path, step) for step in (10, 20, 30, 40)][::-1]
    fingerprints = [checkpoint_manifest(path).fingerprint() for path in paths]
    prune(tmp_path, Retention(1, every=10, optimizer=True, verified={paths[0].name}))
    assert not any(is_weights_only(checkpoint_manifest(path)) for path in paths)
    prune(tmp_path, Retention(2, every=10, verified={paths[0].name, paths[1].name}))
    manifests = [checkpoint_manifest(path) for path in paths]
    assert [is_weights_only(manifest) for manifest in manifests] == [False, False, True, True]
    assert [manifest.fingerprint() for manifest in manifests] == fingerprints
    for path in paths[2:]:
        assert {file.name for file in path.iterdir()} == {"weights", "manifest.json"}
        verify_hashes(path, checkpoint_manifest(path))
    (paths[0] / "manifest.json").write_text("{")
    (paths[1] / "weights").unlink()
    assert run_folder.newest_readable(tmp_path) is None


@pytest.mark.parametrize("calls", range(9))
def test_a_kill_while_the_optimizer_is_dropped_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Killed before the n-th change of the disk; what is found is whole, and the next start finishes it."""
    path, left = make(tmp_path, 1), [calls]

    def or_die(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, or_die(getattr(owner, name)))
        run_folder.drop_optimizer(path)
    assert left[0] == 0 or calls > 3
    found = checkpoint_manifest(path)
    assert is_weights_only(found) == (calls > 1)  # 0: fsync, 1: rename
    verify_hashes(path, found)
    run_folder.drop_optimizer(path)
    assert is_weights_only(checkpoint_manifest(path))
    assert not (path / OPTIMIZER).exists()


@pytest.mark.parametrize("calls", range(4))
def test_a_checkpoint_that_becomes_weights_only_while_it_is_read_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Its optimizer is dropped before the n-th look at one of its files."""
    path, original, left = make(tmp_path, 1), Path.is_file, [calls]

    def dropping(self: Path) -> bool:
        left[0] -= 1
        if left[0] == -1:
            run_folder.drop_optimizer(path)
        return original(self)

    monkeypatch.setattr(Path, "is_file", dropping)
    assert checkpoint_manifest(path).counts["step"] == 1


def test_weights_are_read_without_optimizer_and_a_damaged_checkpoint_keeps_its_own(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    manifest = checkpoint_manifest(path)
    whole = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(whole.replace('"step": 1', '"step": 7'))
    with pytest.raises(ManifestError, match="differs from its own checksum"):
        checkpoint_manifest(path)
    run_folder.drop_optimizer(path)
    (path / OPTIMIZER).unlink()  # still there, and may go while weights are read
    verify_hashes(path, manifest)
    (path / "weights").write_text("2")
    with pytest.raises(ManifestError, match="weights: checksum differs"):
        verify_hashes(path, manifest)


def test_space_is_checked_before_the_first_save_and_for_one_more_like_the_newest(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    run_folder.check_space(tmp_path, free // 2)
    with pytest.raises(CheckpointError, match=r"bytes free, [\d,]+ needed for its checkpoints"):
        run_folder.check_space(tmp_path, 2 * free)
    assert run_folder.has_room(tmp_path)
    for step, size in ((1, free + (1 << 30)), (2, 1000)):
        path = checkpoint_path(tmp_path, step)
        path.mkdir(parents=True)
        (path / "shard").touch()
        os.truncate(path / "shard", size)  # sparse: takes no room
        assert run_folder.has_room(tmp_path) == (size == 1000)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Of counts only what was set is written; NaN is null there."""
    done = run_folder.RunCounts(
        **{"step": 2, "steps": 2, "consumed_samples": 4, "consumed_tokens": 7},
        tokens_by_source={"general": run_folder.SourceTokens(asked=9, seen=7)},
        final_validation={"a": math.nan},
    )
    saved = run_folder.CheckpointCounts(
        **{"step": 2, "consumed_tokens": 7, "skipped_steps": (1,), "eos_id": 3, "guard": {"mean": 0.5}},
        validation={"a": 2.5},
    )
    found = checkpoint_manifest(make(tmp_path, **saved.model_dump(exclude_unset=True)))
    assert run_folder.checkpoint_counts(found) == saved
    manifest = write_manifest(tmp_path, "run", inputs={}, counts=done, config={})
    assert "skipped_steps" not in manifest.counts
    counts = run_folder.RunCounts.model_validate(load_manifest(tmp_path, "run").counts)
    assert repr(counts) == repr(done)  # NaN is not equal to itself
    rows = [
        run_folder.MetricRow(step=1, consumed_tokens=3, loss=2.5, tokens_per_second=9.5),
        run_folder.MetricRow(step=2, consumed_tokens=7, validation={"a": 2.5}),
    ]
    metrics = JsonLines(tmp_path / run_folder.METRICS)
    for row in rows:
        metrics.write(row.model_dump(exclude_unset=True))
    metrics.close()
    assert run_folder.read_metrics(tmp_path / run_folder.METRICS) == tuple(rows)


def test_what_is_in_the_place_of_a_run_is_named(tmp_path: Path) -> None:
    make(tmp_path, 99_999_999)
    newest = make(tmp_path, 100_000_000)
    (tmp_path / "checkpoints" / "step_00000001.backup").mkdir()
    run_folder.check_run_folder(tmp_path)
    run_folder.check_run_folder(tmp_path / "new")
    assert checkpoint_paths(tmp_path)[0] == newest, "by number, not by name"
    places = {
        "checkpoints/step_00000007": False,
        "metrics.jsonl": True,
        "config.yaml": True,
        ".stacks": False,
    }
    for name, is_file in places.items():
        path = tmp_path / name
        for wrong in (path.mkdir if is_file else path.touch, lambda path=path: path.symlink_to("nowhere")):
            wrong()
            kind = "file" if is_file else "folder"
            with pytest.raises(CheckpointError, match=f"{path}: is no {kind}, in the place of .*; remove it"):
                run_folder.check_run_folder(tmp_path)
            path.rmdir() if path.is_dir() else path.unlink()
    renamed = newest.rename(checkpoint_path(tmp_path, 100_000_001))
    with pytest.raises(ManifestError, match="is of step 100000000; give it the name step_100000000 again"):
        checkpoint_manifest(renamed)
    for leftover in (".step_00000001.saving", ".step_00000002.saving"):
        (tmp_path / "checkpoints" / leftover).symlink_to("nowhere")
    make(tmp_path, 8)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_checkpoint_of_before_checksums_is_read(tmp_path: Path) -> None:
    """It has a seal over two manifests, which nothing reads any more."""
    path = make(tmp_path, 1)
    tree = json.loads((path / "manifest.json").read_text())
    del tree["checksum"]
    (path / "manifest.json").write_text(json.dumps(tree))
    (path / "weights_only.json").write_text("{}")
    (path / "manifest.sha256").write_text("0  manifest.json\n")
    assert not is_weights_only(checkpoint_manifest(path))
    run_folder.drop_optimizer(path)
    assert is_weights_only(checkpoint_manifest(path))
    tree["counts"]["step"] = "one"
    (path / "manifest.json").write_text(json.dumps(tree))
    (path / OPTIMIZER).write_text("moments")
    with pytest.raises(ManifestError, match=r"counts\.step: Input should be a valid integer"):
        checkpoint_manifest(path)


LOSSES = [(10, 3.0, 1.0), (20, 1.0, 1.0), (30, 2.5, 1.2), (20, 2.0, 1.0), (40, 1.0, 2.0)]  # 20 was repeated


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run that chooses the lowest loss; the last row was torn by a kill."""
    rows: list[dict[str, Any]] = [{"step": 15, "consumed_tokens": 15, "loss": 0.1}]
    rows += [{"step": n, "consumed_tokens": n, "validation": {"a": a, "b": b}} for n, a, b in LOSSES]
    for step in (10, 20, 30, 40):
        make(tmp_path, step)
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"step": 50, "valida']))
    return choosing(tmp_path)


def choosing(run: Path, choose: str = "lowest_validation_loss") -> Path:
    write_manifest(run, "run", inputs={}, counts={}, config={"checkpoint": {"choose": choose}})
    return run


def test_lowest_mean_over_the_sets_newest_by_default_and_while_a_run_is_not_finished(finished: Path) -> None:
    assert chosen_checkpoint(finished) == checkpoint_path(finished, 20)  # 2.0, 1.5, 1.85, 1.5
    rows = (finished / "metrics.jsonl").read_text()
    (finished / "metrics.jsonl").write_text(rows.replace('"a": 2.0', '"a": 9.0'))
    with pytest.raises(DataError, match=r"metrics\.jsonl: checksum differs from its run's manifest\.json"):
        chosen_checkpoint(finished)
    (finished / "metrics.jsonl").write_text(rows)
    first, newest = checkpoint_path(finished, 10), checkpoint_path(finished, 40)
    assert chosen_checkpoint(first) == first
    (finished / "manifest.json").unlink()
    assert chosen_checkpoint(finished) == newest
    assert chosen_checkpoint(choosing(finished, "newest")) == newest


def test_a_choice_that_cannot_be_made_is_named(finished: Path) -> None:
    shutil.rmtree(checkpoint_path(finished, 20))
    choosing(finished)
    with pytest.raises(CheckpointError, match=r"step_00000020: not there, .* raise checkpoint.keep"):
        chosen_checkpoint(finished)
    (finished / "metrics.jsonl").write_text('{"step": 1, "consumed_tokens": 1, "loss": 2.0}\n')
    choosing(finished)
    with pytest.raises(CheckpointError, match="no validation loss to choose by"):
        chosen_checkpoint(finished)
