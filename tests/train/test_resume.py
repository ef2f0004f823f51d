"""A run that was stopped, killed, saved beside its steps or in another layout goes on with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import EXIT_REQUEUE
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes
from megatron_mathcpt.formats.run_folder import (
    checkpoint_paths,
    is_weights_only,
    load_sealed,
    newest_checkpoint,
    step_of,
)
from tests.train.conftest import ConfigOf, command, rows_without_timings
from tests.train.test_layouts import SHARDED, TWO_PROCESSES, train_layouts

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MATHCPT_KILLS", "50"))
STEPS_A_KILL = 24  # of them a kill costs some; the run must not end before the last kill
TENSOR = SHARDED | {"tensor_model_parallel_size": 2}
OTHERS = {"pipeline": SHARDED | {"pipeline_model_parallel_size": 2}, "data": SHARDED}


def wait_for_step(out: Path, step: int) -> None:
    """Return once the checkpoint after `step` is committed."""
    path = out / "checkpoints" / f"step_{step:08d}"
    deadline = time.monotonic() + 120
    while not path.is_dir():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def check_same_run(whole: Path, resumed: Path) -> None:
    """Each step once, with the bits of the undisturbed run, and equal final checkpoint files."""
    assert rows_without_timings(resumed) == rows_without_timings(whole)
    first, second = (load_manifest(newest_checkpoint(out), "checkpoint") for out in (whole, resumed))
    shards = {name: file for name, file in first.outputs.items() if name.endswith(".distcp")}
    assert shards
    assert {name: second.outputs[name] for name in shards} == shards
    assert load_manifest(resumed, "run").counts == load_manifest(whole, "run").counts


@pytest.fixture(scope="module")
def whole(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run on one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(config_of(), out), check=True, timeout=200)
    return out


@pytest.mark.parametrize(
    "saves", [{}, pytest.param({"interval": 1, "async_save": True}, marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_with_the_same_bits(
    whole: Path, config_of: ConfigOf, tmp_path: Path, saves: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    arguments = command(config_of(checkpoint=saves), out)
    run = subprocess.Popen(arguments)
    wait_for_step(out, 8)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == EXIT_REQUEUE
    assert 8 < step_of(newest_checkpoint(out)) < 20
    assert not list((out / "checkpoints").glob(".step_*"))
    assert subprocess.run(arguments, check=False, timeout=200).returncode == 0
    check_same_run(whole, out)


def test_a_finished_run_is_left_alone_without_torch(whole: Path, config_of: ConfigOf) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    arguments = [sys.executable, "-X", "importtime", *command(config_of(), whole)[1:]]
    done = subprocess.run(arguments, check=True, timeout=60, capture_output=True, text=True)
    assert "already trained" in done.stderr
    assert "| torch" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_a_killed_run_goes_on_with_the_same_bits(config_of: ConfigOf, tmp_path: Path, victim: str) -> None:
    config = config_of(parallel={"tensor_model_parallel_size": 2})
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(config, whole), check=True, timeout=200)
    arguments = command(config, out)
    for step in (8, 16):
        run = subprocess.Popen(arguments)
        wait_for_step(out, step)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        target = run.pid if victim == "launcher" else int(children[1])
        os.kill(target, signal.SIGKILL)
        assert run.wait(timeout=60) != 0
    subprocess.run(arguments, check=True, timeout=200)
    check_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("beside", [False, True])
def test_random_kills_change_no_bit(config_of: ConfigOf, tmp_path: Path, beside: bool) -> None:
    config = config_of(
        parallel={"tensor_model_parallel_size": 2},
        train={"train_tokens": (KILLS + 1) * STEPS_A_KILL * 256},
        checkpoint={"interval": 4, "async_save": beside, "keep_every": 4 * STEPS_A_KILL},
    )
    for name, kills in (("whole", 0), ("killed", KILLS)):
        arguments = command(config, tmp_path / name, "-m", "tests.train.random_kills")
        subprocess.run([*arguments, "--kills", str(kills)], cwd=ROOT, check=True, timeout=3500)
    check_same_run(tmp_path / "whole", tmp_path / "killed")
    kept, undisturbed = (checkpoint_paths(tmp_path / name) for name in ("killed", "whole"))
    assert step_of(kept[0]) == (KILLS + 1) * STEPS_A_KILL
    assert [path.name for path in kept] == [path.name for path in undisturbed]
    for path, whole in zip(kept, undisturbed, strict=True):
        manifest, expected = load_sealed(path), load_sealed(whole)
        verify_hashes(path, manifest)
        assert is_weights_only(manifest) == is_weights_only(expected) == (path not in kept[:2])
        for name in expected.outputs.keys() - {".metadata"}:  # it has an id of its save
            assert manifest.outputs[name] == expected.outputs[name]


@pytest.mark.parametrize(
    "layout", ["tensor", *(pytest.param(x, marks=pytest.mark.slow) for x in ("pipeline", "data, overlapped"))]
)
def test_all_ranks_write_what_they_would_have_written_waiting(
    config_of: ConfigOf, tmp_path: Path, layout: str
) -> None:
    link = ["ln", "-s", "-t", str(tmp_path / "scored")]  # stands for a job that scores a checkpoint
    (tmp_path / "scored").mkdir()
    saves = {"interval": 4, "keep": 9}
    configs = {
        "waiting": config_of(parallel=TWO_PROCESSES[layout], checkpoint=saves),
        "beside": config_of(
            parallel=TWO_PROCESSES[layout], checkpoint=saves | {"async_save": True, "evaluate": link}
        ),
    }
    train_layouts(configs, 2, tmp_path)
    check_same_run(tmp_path / "waiting", tmp_path / "beside")
    paths = [checkpoint_paths(tmp_path / name) for name in configs]
    assert [path.name for path in paths[0]] == [f"step_{step:08d}" for step in (20, 16, 12, 8, 4)]
    assert sorted(path.resolve() for path in (tmp_path / "scored").iterdir()) == paths[1][::-1]
    for waiting, beside in zip(*paths, strict=True):
        first, second = load_sealed(waiting), load_sealed(beside)
        assert json.dumps(second.counts) == json.dumps(first.counts)
        differing = [name for name in first.outputs if first.outputs[name] != second.outputs[name]]
        assert differing == [".metadata"]  # it has an id of its save


@pytest.mark.slow
def test_a_tensor_parallel_run_goes_on_in_other_layouts(config_of: ConfigOf, tmp_path: Path) -> None:
    keep = {"keep": 9}
    whole = train_layouts({"whole": config_of(parallel=TENSOR, checkpoint=keep)}, 2, tmp_path)["whole"]
    shutil.rmtree(whole.folder / "checkpoints" / "step_00000016")
    shutil.rmtree(whole.folder / "checkpoints" / "step_00000020")
    (whole.folder / "manifest.json").unlink()
    for name in (*OTHERS, "one"):
        shutil.copytree(whole.folder, tmp_path / name)
    others = {name: config_of(parallel=sizes, checkpoint=keep) for name, sizes in OTHERS.items()}
    resumed = train_layouts(others, 2, tmp_path)
    resumed |= train_layouts({"one": config_of(parallel=SHARDED, checkpoint=keep)}, 1, tmp_path)
    losses = [row["loss"] for row in whole.rows if "loss" in row]
    for name, run in resumed.items():  # the rows up to step 8 are the old ones
        found = [row["loss"] for row in run.rows if "loss" in row]
        assert found[:8] == losses[:8], name
        assert found == pytest.approx(losses, rel=1e-6), name
        assert run.rows[-1]["validation"] == pytest.approx(whole.rows[-1]["validation"], rel=1e-6), name
