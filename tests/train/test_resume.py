"""A stopped, killed, asynchronously saved or resharded run resumes with the same bits."""

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
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes
from tests.support.training_outputs import losses_of, metric_rows, rewind
from tests.support.training_runs import KEEP_ALL, ConfigOf, run_command, train, train_command, train_forked
from tests.train.test_layouts import SHARDED, TWO_PROCESSES

KILLS = int(os.environ.get("MATHCPT_KILLS", "50"))
STEPS_A_KILL = 24  # a kill costs some of them; the run must not end before the last kill
TENSOR = {"tensor_model_parallel_size": 2}
OTHERS = {"pipeline": SHARDED | {"pipeline_model_parallel_size": 2}, "data": SHARDED}


def started(config: Path, out: Path, step: int) -> subprocess.Popen[bytes]:
    """A run whose checkpoint after `step` is committed."""
    process = subprocess.Popen(train_command(config, out))
    while not folders.checkpoint_path(out, step).is_dir():
        assert process.poll() is None
        time.sleep(0.005)
    return process


def check_same_run(whole: Path, resumed: Path) -> None:
    """Each step once, with the bits of the undisturbed run, and equal final checkpoint files."""
    assert metric_rows(resumed) == metric_rows(whole)
    first, second = (load_manifest(folders.newest_checkpoint(out), "checkpoint") for out in (whole, resumed))
    shards = {name: file for name, file in first.outputs.items() if name.endswith(".distcp")}
    assert shards
    assert {name: second.outputs[name] for name in shards} == shards
    assert load_manifest(resumed, "run").counts == load_manifest(whole, "run").counts


@pytest.mark.parametrize(
    "saves", [{}, pytest.param({"interval": 1, "async_save": True}, marks=pytest.mark.slow)]
)
def test_a_stopped_run_resumes_with_the_same_bits(
    whole: Path, config_of: ConfigOf, tmp_path: Path, saves: dict[str, Any]
) -> None:
    config, out = config_of(checkpoint=saves), tmp_path / "run"
    stopped = started(config, out, 8)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=60) == EXIT_REQUEUE
    assert 8 < folders.step_of(folders.newest_checkpoint(out)) < 20
    assert not list((out / "checkpoints").glob(".step_*"))
    train(config, out)
    check_same_run(whole, out)


def test_a_finished_run_is_left_alone_without_torch(whole: Path, config_of: ConfigOf) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    done = run_command([sys.executable, "-X", "importtime", *train_command(config_of(**KEEP_ALL), whole)[1:]])
    assert done.returncode == 0
    assert "already trained" in done.stderr
    assert "| torch" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_a_killed_run_resumes_with_the_same_bits(config_of: ConfigOf, tmp_path: Path, victim: str) -> None:
    config, out = config_of(parallel=TENSOR), tmp_path / "killed"
    train(config, tmp_path / "whole")
    for step in (8, 16):
        killed = started(config, out, step)
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        os.kill(killed.pid if victim == "launcher" else int(children[1]), signal.SIGKILL)
        assert killed.wait(timeout=60) != 0
    train(config, out)
    check_same_run(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("async_save", [False, True])
def test_random_kills_change_no_bit(config_of: ConfigOf, tmp_path: Path, async_save: bool) -> None:
    config = config_of(
        parallel=TENSOR,
        train={"train_tokens": (KILLS + 1) * STEPS_A_KILL * 256},
        checkpoint={"interval": 4, "async_save": async_save, "keep_every": 4 * STEPS_A_KILL},
    )
    killed = train_forked({"killed": config}, 2, tmp_path, KILLS)["killed"]
    whole = train_forked({"whole": config}, 2, tmp_path)["whole"]
    check_same_run(whole, killed)
    kept, undisturbed = map(folders.checkpoint_paths, (killed, whole))
    assert folders.step_of(kept[0]) == (KILLS + 1) * STEPS_A_KILL
    for path, same in zip(kept, undisturbed, strict=True):
        manifest, expected = folders.checkpoint_manifest(path), folders.checkpoint_manifest(same)
        verify_hashes(path, manifest)
        light = folders.is_weights_only(manifest), folders.is_weights_only(expected)
        assert (path.name, *light) == (same.name, *[path not in kept[:2]] * 2)
        for name in expected.outputs.keys() - {".metadata"}:  # it contains an id of the save
            assert manifest.outputs[name] == expected.outputs[name]


@pytest.mark.parametrize(
    "layout", ["tensor", *(pytest.param(x, marks=pytest.mark.slow) for x in ("pipeline", "data, overlapped"))]
)
def test_an_async_save_writes_what_a_blocking_one_would(
    config_of: ConfigOf, tmp_path: Path, layout: str
) -> None:
    link = ["ln", "-s", "-t", str(tmp_path / "scored")]  # simulates a job that scores a checkpoint
    (tmp_path / "scored").mkdir()
    saves = {"blocking": {"interval": 4, "keep": 9}}
    saves["async"] = saves["blocking"] | {"async_save": True, "evaluate": link}
    sizes = TWO_PROCESSES[layout]
    configs = {name: config_of(parallel=sizes, checkpoint=settings) for name, settings in saves.items()}
    train_forked(configs, 2, tmp_path)
    check_same_run(tmp_path / "blocking", tmp_path / "async")
    paths = [folders.checkpoint_paths(tmp_path / name) for name in configs]
    assert [folders.step_of(path) for path in paths[0]] == [20, 16, 12, 8, 4]
    assert sorted(path.resolve() for path in (tmp_path / "scored").iterdir()) == paths[1][::-1]
    for blocking, async_one in zip(*paths, strict=True):
        first, second = folders.checkpoint_manifest(blocking), folders.checkpoint_manifest(async_one)
        own = {"metrics": ""}  # the hash of rows with timings
        assert json.dumps(second.counts | own) == json.dumps(first.counts | own)
        differing = [name for name in first.outputs if first.outputs[name] != second.outputs[name]]
        assert differing == [".metadata"]  # it contains an id of the save


@pytest.mark.slow
def test_a_tensor_parallel_run_resumes_in_other_layouts(config_of: ConfigOf, tmp_path: Path) -> None:
    whole = train_forked({"whole": config_of(parallel=SHARDED | TENSOR, **KEEP_ALL)}, 2, tmp_path)["whole"]
    rewind(whole, 8)
    for name in (*OTHERS, "one"):
        shutil.copytree(whole, tmp_path / name)
    others = {name: config_of(parallel=sizes, **KEEP_ALL) for name, sizes in OTHERS.items()}
    resumed = train_forked(others, 2, tmp_path)
    resumed |= train_forked({"one": config_of(parallel=SHARDED, **KEEP_ALL)}, 1, tmp_path)
    losses, validation = losses_of(whole), metric_rows(whole)[-1]["validation"]
    for name, out in resumed.items():
        assert losses_of(out)[:8] == losses[:8], "the rows up to step 8 are the old ones"
        assert losses_of(out) == pytest.approx(losses, rel=1e-6), name
        assert metric_rows(out)[-1]["validation"] == pytest.approx(validation, rel=1e-6), name
