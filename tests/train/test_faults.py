"""Kills inside a save, damaged checkpoints, a second job, a changed config: the fault matrix."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError, ConfigError, ManifestError
from megatron_mathcpt.formats.manifest import verify_hashes
from megatron_mathcpt.formats.run_folder import (
    checkpoint_paths,
    is_weights_only,
    load_sealed,
    newest_checkpoint,
    seal,
    step_of,
)
from megatron_mathcpt.train.inputs import check_resumable, resolve_inputs
from megatron_mathcpt.train.process import free_port, local_world
from tests.train.conftest import ConfigOf, command, losses_of, rows_without_timings, run

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
    f"{FOLDER}:seal:after:2",
    f"{FOLDER}:sync_folder:before:2",  # renamed, not yet pointed at
    f"{FOLDER}:commit:after:2",
    f"{FOLDER}:prune:before:2",
    "shutil:rmtree:before:2",  # the oldest is hidden, not yet removed
]


def train(config: ExperimentConfig, out: Path, *script: str) -> "subprocess.CompletedProcess[str]":
    """Train in a process of its own; `script` stands for `-m megatron_mathcpt.train`."""
    return run(command(config, out, *script), **local_world(0, 1, free_port()))


@pytest.fixture(scope="module")
def whole(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that keeps all of its checkpoints: steps 8, 16 and 20."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = train(config_of(checkpoint={"keep": 9}), out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("phase", SAVE_PHASES)
def test_a_kill_in_any_phase_of_a_save_loses_nothing(
    whole: Path, config_of: ConfigOf, tmp_path: Path, phase: str, beside: bool
) -> None:
    config, out = config_of(checkpoint={"keep": 1, "async_save": beside}), tmp_path / "run"
    killed = train(config, out, "-m", "tests.train.fault_worker", f"{phase}:kill:0")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = newest_checkpoint(out)
    load_sealed(found)
    assert step_of(found) in (8, 16)
    done = train(config, out)
    assert done.returncode == 0, done.stderr
    assert losses_of(out) == losses_of(whole)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name != "latest"] == [
        "step_00000020"
    ]


@pytest.fixture
def verify() -> Iterator[Callable[..., Any]]:
    """`verify(path, optimizer=True)`: what every start does with a checkpoint."""
    use_cpu()
    from megatron_mathcpt.checkpoint.load import verify_checkpoint

    sizes = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    layout = parallel.start_alone(sizes)
    yield lambda path, **options: verify_checkpoint(path, layout, **options)
    parallel.stop()


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The last checkpoint, to be damaged."""
    return Path(shutil.copytree(newest_checkpoint(whole), tmp_path / "step_00000020"))


def test_every_flipped_bit_is_detected_before_load(copy: Path, verify: Callable[..., Any]) -> None:
    verify(copy)
    files = sorted(copy.iterdir())
    assert {".metadata", "__0_0.distcp", "manifest.json", "manifest.sha256"} <= {file.name for file in files}
    dice = random.Random(0)
    for number in range(200):
        file = files[number % len(files)]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"step_00000020"):
            verify(copy)
        file.write_bytes(good)
    verify(copy)


def test_who_starts_from_the_weights_does_not_read_the_optimizer(
    copy: Path, verify: Callable[..., Any]
) -> None:
    file = copy / "optimizer___0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    verify(copy, optimizer=False)
    with pytest.raises(CheckpointError, match="checksum differs"):
        verify(copy)


@pytest.mark.parametrize(
    "name", [".metadata", "metadata.json", "__0_0.distcp", "manifest.json", "manifest.sha256"]
)
def test_a_cut_or_missing_file_is_detected(copy: Path, verify: Callable[..., Any], name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        verify(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError):
        verify(copy)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    whole: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "manifest.json").unlink()
    shard = out / "checkpoints" / "step_00000020" / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (out / "checkpoints" / "step_00000016" / "manifest.json").write_text("{")
    (out / "checkpoints" / "latest").write_text("step_99")
    done = train(config_of(checkpoint={"keep": 9}), out)
    assert done.returncode == 0, done.stderr
    assert "step_00000020/__0_0.distcp" in done.stderr
    assert "at step 8" in done.stderr
    assert rows_without_timings(out) == rows_without_timings(whole)


def test_no_run_goes_on_from_weights_only(whole: Path, config_of: ConfigOf, tmp_path: Path) -> None:
    """They are kept of every second save but the newest, sealed, with the bits of the whole one."""
    out, config = tmp_path / "run", config_of(checkpoint={"keep": 1, "keep_every": 8})
    assert train(config, out).returncode == 0
    newest, *older = checkpoint_paths(out)
    assert [path.name for path in (newest, *older)] == ["step_00000020", "step_00000016", "step_00000008"]
    for path in older:
        light, full = (load_sealed(folder) for folder in (path, whole / "checkpoints" / path.name))
        verify_hashes(path, light)
        assert is_weights_only(light)
        assert light.outputs["__0_0.distcp"] == full.outputs["__0_0.distcp"]
        assert 2 * sum(file.bytes for file in light.outputs.values()) < sum(
            file.bytes for file in full.outputs.values()
        )
    (out / "manifest.json").unlink()
    (newest / ".metadata").unlink()
    done = train(config, out)
    assert done.returncode == 2
    assert "no checkpoint verifies that holds more than weights" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

    def start(name: str, **init: object) -> "subprocess.CompletedProcess[str]":
        settings = {"scratch": False, "checkpoint": str(older[0]), **init}
        return train(config_of(init=settings).model_copy(update={"model": None}), tmp_path / name)

    assert start("from weights").returncode == 0
    done = start("from all", load_optimizer=True)
    assert "init.load_optimizer: " in done.stderr
    assert "step_00000016 holds weights only" in done.stderr


def test_going_on_with_a_changed_experiment_is_refused(whole: Path, copy: Path, config_of: ConfigOf) -> None:
    checkpoint = newest_checkpoint(whole)
    allowed = config_of(checkpoint={"interval": 3}, logging={"interval": 1}, train={"micro_batch_size": 2})
    check_resumable(resolve_inputs(allowed), checkpoint)
    older = json.loads((checkpoint / "manifest.json").read_text())  # of a version that had fields more
    older["config"] |= {"gone": {"x": 1}, "optimizer": older["config"]["optimizer"] | {"gone": 1}}
    (copy / "manifest.json").write_text(json.dumps(older))
    seal(copy)
    check_resumable(resolve_inputs(allowed), copy)
    changed = config_of(optimizer={"lr": 1e-3}, train={"global_batch_size": 8})
    with pytest.raises(
        ConfigError, match=r"optimizer\.lr: 0\.003 then, 0\.001 now; train\.global_batch_size: 4"
    ):
        check_resumable(resolve_inputs(changed), copy)

    sharded = config_of(parallel={"use_distributed_optimizer": True})
    with pytest.raises(ConfigError, match=r"parallel\.use_distributed_optimizer: False then, True now"):
        check_resumable(resolve_inputs(sharded), checkpoint)
    goes_on = config_of(
        init={"scratch": False, "checkpoint": str(whole), "load_optimizer": True},
        parallel={"use_distributed_optimizer": True},
    )
    with pytest.raises(ConfigError, match=r"was written with False; to load its optimizer"):
        resolve_inputs(goes_on)


@pytest.mark.parametrize("beside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(
    whole: Path, config_of: ConfigOf, tmp_path: Path, beside: bool
) -> None:
    """RLIMIT_FSIZE stands for the full disk: a shard is about 2 MB, all other files are smaller."""
    out = tmp_path / "run"
    limited = f"ulimit -f 1024; trap '' XFSZ; exec {sys.executable} -m megatron_mathcpt.train \"$@\""
    _, *arguments = command(config_of(checkpoint={"async_save": beside}), out, "-c", limited, "bash")
    done = run(["bash", *arguments], **local_world(0, 1, free_port()))
    assert done.returncode == 2, done.stderr
    cause = r"step_00000008: cannot be written \((a write was cut short|File too large); [\d,]+ bytes free"
    assert re.search(cause, done.stderr.splitlines()[-1])
    assert not checkpoint_paths(out)
    with pytest.raises(ManifestError):
        load_sealed(out / "checkpoints" / "step_00000008")
