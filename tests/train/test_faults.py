"""Kills inside a save, damaged checkpoints, faults of a rank, a changed config: the fault matrix."""

import json
import math
import random
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import FaultsSection
from megatron_mathcpt.errors import CheckpointError, ConfigError, TrainingDiverged
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.manifest import Manifest, load_manifest, store_manifest
from megatron_mathcpt.train.faults import GuardState, StepGuard
from megatron_mathcpt.train.inputs import check_resumable, resolve_inputs
from tests.support.training_outputs import metric_rows, rewind
from tests.support.training_runs import KEEP_ALL, ConfigOf, run_command, train, train_command, train_forked

SAVE, FOLDER = "megatron_mathcpt.checkpoint.save", "megatron_mathcpt.formats.run_folder"
# Second save (after step 16): before and after each phase of it. Each save syncs its shards, then the index.
SAVE_PHASES = [
    f"{SAVE}:save_distributed:before:2",
    f"{SAVE}:save_distributed:after:2",
    f"{SAVE}:without_crc32:before:2",  # nothing written yet
    f"{SAVE}:sync_and_describe:before:3",  # written, not yet synced
    f"{SAVE}:sync_and_describe:after:3",
    f"{SAVE}:sync_and_describe:before:4",  # the index
    f"{SAVE}:write_manifest:before:2",
    f"{SAVE}:write_manifest:after:2",
    f"{FOLDER}:sync_folder:before:2",  # renamed, not yet pointed at
    f"{FOLDER}:commit:after:2",
    f"{FOLDER}:prune:before:2",
    "shutil:rmtree:before:2",  # the oldest is hidden, not yet removed
]
UPDATE = "megatron_mathcpt.train.step:prepare_gradients:before:10"
TENTH = r"gradient norm is not finite at step 10; no process applied the step \(samples 36 to 39: "


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("phase", SAVE_PHASES)
def test_a_kill_in_any_phase_of_a_save_loses_nothing(
    whole: Path, config_of: ConfigOf, tmp_path: Path, phase: str, async_save: bool
) -> None:
    config, out = config_of(checkpoint={"keep": 1, "async_save": async_save}), tmp_path / "run"
    train(config, out, f"{phase}:kill", "0/1", status=128 + signal.SIGKILL)
    found = folders.newest_checkpoint(out)
    folders.checkpoint_manifest(found)
    assert folders.step_of(found) in (8, 16)
    train(config, out)
    assert metric_rows(out) == metric_rows(whole)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"latest", "step_00000020"}


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The last checkpoint, to be damaged."""
    return Path(shutil.copytree(folders.newest_checkpoint(whole), tmp_path / "step_00000020"))


def test_every_flipped_bit_and_cut_file_is_detected(copy: Path, layout: parallel.Layout) -> None:
    from megatron_mathcpt.checkpoint.load import verify_checkpoint

    def damage(file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="step_00000020"):
            verify_checkpoint(copy, layout)
        file.write_bytes(files[file])

    verify_checkpoint(copy, layout)
    files = {path: path.read_bytes() for path in sorted(copy.iterdir())}
    names = {".metadata", "metadata.json", "__0_0.distcp", "manifest.json"}
    assert names <= {file.name for file in files}
    dice = random.Random(0)
    for number in range(200):
        file, good = list(files.items())[number % len(files)]
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        damage(file, bad)
    for name in names:
        damage(copy / name, files[copy / name][:-1])
        (copy / name).unlink()
        with pytest.raises(CheckpointError):
            verify_checkpoint(copy, layout)
        (copy / name).write_bytes(files[copy / name])
    optimizer = copy / "optimizer___0_0.distcp"
    optimizer.write_bytes(files[optimizer][:-1] + b"?")
    verify_checkpoint(copy, layout, optimizer=False)  # starting from the weights alone does not read it


def test_a_start_names_damaged_data_and_what_is_in_its_place(
    whole: Path, corpus: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    """In one line, before a worker starts."""
    config = config_of(data={"corpus": str(shutil.copytree(corpus, tmp_path / "corpus"))})
    for name in ("train.bin", "validation.idx"):
        file = tmp_path / "corpus/datasets/general" / name
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        said = train(config, tmp_path / "run", status=2)
        assert said == f"error: {file}: checksum differs from the manifest; rebuild it\n"
        file.write_bytes(good)
    (tmp_path / "run").write_text("mine")
    remedy = "is no folder, in the place of one of the run; remove it"
    assert train(config, tmp_path / "run", status=2) == f"error: {tmp_path / 'run'}: {remedy}\n"
    out = Path(shutil.copytree(whole, tmp_path / "resumed"))
    rewind(out, 16)
    (out / "metrics.jsonl").write_text(
        (out / "metrics.jsonl").read_text().replace('"step": 3,', '"step": 4,')
    )
    said = train(config_of(**KEEP_ALL), out, status=2)
    assert said.splitlines()[-1].startswith(f"error: {out / 'metrics.jsonl'}: its rows up to step 16 are not")
    assert "Traceback" not in said


def test_a_damaged_checkpoint_is_passed_over(whole: Path, config_of: ConfigOf, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (out / "manifest.json").unlink()
    shard = out / "checkpoints" / "step_00000020" / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (out / "checkpoints" / "step_00000016" / "manifest.json").write_text("{")
    (out / "checkpoints" / "latest").write_text("step_99")
    said = train(config_of(**KEEP_ALL), out)
    assert "step_00000020/__0_0.distcp" in said
    assert "at step 8" in said
    assert metric_rows(out) == metric_rows(whole)


def test_no_run_resumes_from_weights_only(whole: Path, config_of: ConfigOf, tmp_path: Path) -> None:
    """Every second save but the newest keeps its weights, bit-identical to the full one's."""
    out, config = tmp_path / "run", config_of(checkpoint={"keep": 1, "keep_every": 8})
    train(config, out)
    newest, *older = folders.checkpoint_paths(out)
    assert [folders.step_of(path) for path in (newest, *older)] == [20, 16, 8]
    for path in older:
        light, full = map(folders.checkpoint_manifest, (path, whole / "checkpoints" / path.name))
        assert folders.is_weights_only(light)
        assert light.outputs["__0_0.distcp"] == full.outputs["__0_0.distcp"]
    (out / "manifest.json").unlink()
    (newest / ".metadata").unlink()
    said = train(config, out, status=2)
    assert "no checkpoint verifies that has more than weights" in said.splitlines()[-1]
    assert "Traceback" not in said
    start = {"scratch": False, "checkpoint": str(older[0])}
    train(config_of(init=start), tmp_path / "from weights")
    with pytest.raises(ConfigError, match=r"init\.load_optimizer: .*step_00000016 has weights only"):
        resolve_inputs(config_of(init=start | {"load_optimizer": True}))


def test_going_on_with_a_changed_experiment_is_refused(whole: Path, copy: Path, config_of: ConfigOf) -> None:
    allowed = config_of(checkpoint={"interval": 3}, logging={"interval": 1}, train={"micro_batch_size": 2})
    check_resumable(resolve_inputs(allowed), copy)
    older = json.loads((copy / "manifest.json").read_text())  # by a version with extra fields
    older["config"] |= {"gone": {"x": 1}, "optimizer": older["config"]["optimizer"] | {"gone": 1}}
    store_manifest(Manifest.model_validate(older), copy / "manifest.json")
    check_resumable(resolve_inputs(allowed), copy)
    sharded: dict[str, Any] = {"parallel": {"use_distributed_optimizer": True}}
    changed = sharded | {"optimizer": {"lr": 1e-3}, "train": {"global_batch_size": 8}}
    message = (
        r"optimizer\.lr: 0\.003 then, 0\.001 now; parallel\.use_distributed_optimizer: False then, True now; "
        r"train\.global_batch_size: 4"
    )
    with pytest.raises(ConfigError, match=message):
        check_resumable(resolve_inputs(config_of(**changed)), copy)
    init = {"scratch": False, "checkpoint": str(whole), "load_optimizer": True}
    with pytest.raises(ConfigError, match=r"was written with False; to load its optimizer"):
        resolve_inputs(config_of(init=init, **sharded))


@pytest.mark.parametrize("async_save", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_no_checkpoint(
    config_of: ConfigOf, tmp_path: Path, async_save: bool
) -> None:
    """RLIMIT_FSIZE simulates the full disk: a shard is about 2 MB, all other files are smaller."""
    limited = f"ulimit -f 1024; trap '' XFSZ; exec {sys.executable} -m megatron_mathcpt.train \"$@\""
    config, out = config_of(checkpoint={"async_save": async_save}), tmp_path / "run"
    done = run_command(["bash", *train_command(config, out, "-c", limited, "bash")[1:]])
    assert done.returncode == 2, done.stderr
    cause = r"step_00000008: cannot be written \((a write was cut short|File too large); [\d,]+ bytes free"
    assert re.search(cause, done.stderr.splitlines()[-1])
    assert not folders.checkpoint_paths(out)


def test_a_full_disk_while_logging_is_one_line_and_the_run_resumes(
    whole: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    """No file may grow beyond 5000 bytes: `metrics.jsonl` reaches them after step 8, with its checkpoint."""
    limited = f"trap '' XFSZ; exec prlimit --fsize=5000 {sys.executable} -m megatron_mathcpt.train \"$@\""
    config, out = config_of(**KEEP_ALL), Path(shutil.copytree(whole, tmp_path / "run"))
    rewind(out, 8)
    older = {path: path.read_bytes() for path in (out / "checkpoints" / "step_00000008").iterdir()}
    done = run_command(["bash", *train_command(config, out, "-c", limited, "bash")[1:]])
    assert done.returncode == 2, done.stderr
    said = f"error: {out / 'metrics.jsonl'}: File too large; make room and run again"
    assert done.stderr.splitlines()[-1] == said
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in older} == older
    train(config, out)
    assert metric_rows(out) == metric_rows(whole)


def test_a_step_that_is_not_finite_stops_or_is_skipped() -> None:
    with pytest.raises(TrainingDiverged, match="gradient norm is not finite at step 3; no process applied"):
        StepGuard(FaultsSection()).judge(3, None, math.nan)
    guard = StepGuard(FaultsSection(non_finite="skip"))
    norms = [1.0, math.inf, *[math.nan] * 9]
    verdicts = [guard.judge(step, None, norm) for step, norm in enumerate(norms, 1)]
    assert verdicts == [None, *["gradient norm is not finite"] * 10]
    assert guard.state.skipped == list(range(2, 12))
    with pytest.raises(TrainingDiverged, match="11th skipped in a row"):
        guard.judge(12, None, math.nan)


def test_a_spike_is_skipped_by_hand_worked_limits() -> None:
    guard = StepGuard(FaultsSection(spike_sigma=2.0, spike_window=4))
    # Half a window is there after two steps: losses 2, 4 have mean 3 and deviation sqrt(2), so the limit is
    # 3 + 2 sqrt(2) = 5.828; norms 1, 1 allow nothing above 1.
    assert [guard.judge(step, loss, 1.0) for step, loss in ((1, 2.0), (2, 4.0), (3, 5.82))] == [None] * 3
    # 2, 4, 5.82: mean 3.94, deviation 1.9107, limit 7.761.
    assert guard.judge(4, 7.77, 1.0) == "loss 7.77 is above 7.761, 2 deviations over the last steps"
    assert guard.judge(5, 7.76, 1.01) == "gradient norm 1.01 is above 1, 2 deviations over the last steps"
    assert guard.judge(6, 7.76, 1.0) is None
    assert guard.state.skipped == [4, 5]


def test_a_guard_resumes_from_its_state() -> None:
    settings = FaultsSection(spike_sigma=1.0, spike_window=6)
    losses = [3.0, 2.9, 3.2, 2.7, 9.0, 2.6, 2.8, 3.9, 2.5]

    whole = resumed = StepGuard(settings)
    verdicts = []
    for step, loss in enumerate(losses, 1):
        resumed = StepGuard(settings, GuardState.model_validate_json(resumed.state.model_dump_json()))
        verdicts.append(whole.judge(step, loss, loss))
        assert resumed.judge(step, loss, loss) == verdicts[-1]
        assert resumed.state == whole.state
    assert any(verdicts)


@pytest.mark.slow
def test_nan_on_one_rank_is_applied_on_none(config_of: ConfigOf, tmp_path: Path) -> None:
    faults, out = {"non_finite": "skip", "replica_check_interval": 1}, tmp_path / "run"
    config = config_of(faults=faults, **KEEP_ALL)
    said = train(config, out, f"{UPDATE}:nan", "1/2")
    assert "step 10 skipped: gradient norm is not finite (samples 36 to 39: " in said
    whole = metric_rows(out)
    (skipped,) = [row for row in whole if "skipped" in row]
    assert (skipped["step"], skipped["grad_norm"]) == (10, None)
    assert all(math.isfinite(row["loss"]) for row in whole if "loss" in row)
    assert load_manifest(out, "run").counts["skipped_steps"] == [10]
    # Resumed after the skipped step: the same rows, and the skip is not forgotten.
    rewind(out, 16)
    train_forked({"run": config}, 2, tmp_path)
    assert metric_rows(out) == whole
    assert load_manifest(out, "run").counts["skipped_steps"] == [10]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"), [("nan", TENTH), ("flip", "after step 12 the weights of ranks 0, 1 differ")]
)
def test_a_faulty_rank_ends_the_run(config_of: ConfigOf, tmp_path: Path, fault: str, message: str) -> None:
    config = config_of(faults={"replica_check_interval": 4})
    said = train(config, tmp_path / "run", f"{UPDATE}:{fault}", "1/2", status=2)
    assert re.match(f"error: {message}", said.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stop", "hang"])
def test_a_process_that_hangs_is_noticed(config_of: ConfigOf, tmp_path: Path, fault: str) -> None:
    config, out = config_of(faults={"hang_timeout_seconds": 20.0}), tmp_path / "run"
    train(config, out, f"{UPDATE}:{fault}", "1/2", status=1)
    stacks = [path.read_text() for path in sorted((out / ".stacks").iterdir())]
    assert "train_step" in stacks[0]
    assert ("cause" in stacks[1]) == (fault == "hang"), "a stopped process cannot speak"
    assert not (out / "manifest.json").exists()
    train_forked({"run": config}, 2, tmp_path)
    assert [row["step"] for row in metric_rows(out) if "loss" in row] == list(range(1, 21))
