"""A grid run here: what is skipped, stopped, refused, and what a killed runner leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.experiment.local import run_stages
from megatron_mathcpt.experiment.stages import Config, Stage
from tests.support.stages import demo_stage as stage


def states(stages: list[Stage], out: Path) -> list[str]:
    return [outcome.state for outcome in run_stages(stages, out)]


def test_complete_stages_are_skipped_even_after_a_move_and_asked_if_not_noted(tmp_path: Path) -> None:
    out = tmp_path / "one"
    assert states([stage(out, "a"), stage(out, "b", "a")], out) == ["ran", "ran"]
    moved = out.rename(tmp_path / "two")
    chain = [stage(moved, "a"), stage(moved, "b", "a")]
    assert states(chain, moved) == ["done", "done"]
    assert (moved / "log").read_text().split() == ["a", "b"]
    timings = json.loads((moved / "timings.json").read_text())
    assert set(timings) == {"a", "b"}
    (moved / ".stages.json").unlink()
    (moved / "timings.json").write_text(json.dumps(timings | {"a": 9.5}))
    before = (moved / "a" / "manifest.json").stat().st_mtime_ns
    assert states(chain, moved) == ["ran", "ran"]
    assert (moved / "a" / "manifest.json").stat().st_mtime_ns == before
    assert json.loads((moved / "timings.json").read_text()) == timings | {"a": 9.5}
    assert states(chain, moved) == ["done", "done"]


def test_a_failed_stage_stops_only_what_needs_it(tmp_path: Path) -> None:
    first, last = stage(tmp_path, "a", text="fail"), stage(tmp_path, "d", "b", "c")
    outcomes = run_stages([first, stage(tmp_path, "b", "a"), stage(tmp_path, "c"), last], tmp_path)
    assert [outcome.state for outcome in outcomes] == ["failed", "skipped", "ran", "skipped"]
    assert [outcome.status for outcome in outcomes] == [2, 0, 0, 0]
    assert (tmp_path / "log").read_text().split() == ["a", "c"]


def test_changed_settings_or_inputs_are_refused_by_the_stage_itself(tmp_path: Path) -> None:
    changed, last = stage(tmp_path, "a", text="y"), stage(tmp_path, "b", "a")
    run_stages([stage(tmp_path, "a"), last], tmp_path)
    assert states([changed, last], tmp_path) == ["failed", "skipped"]
    assert (tmp_path / "a" / "a.txt").read_text() == "x"
    path = tmp_path / "configs" / "a.yaml"
    path.parent.mkdir()
    path.write_text("x")
    asked = replace(changed, config=Config(path, "y", {}))
    assert states([asked, last], tmp_path) == ["failed", "skipped"]
    assert path.read_text() == "x", "that of the finished folder"
    shutil.rmtree(tmp_path / "a")
    assert states([changed, last], tmp_path) == ["ran", "failed"]


RUNNER = """
import pathlib, sys
from megatron_mathcpt.experiment.local import run_stages
from megatron_mathcpt.experiment.stages import Config, Stage
out = pathlib.Path(sys.argv[1])
command = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3600)")
run_stages([Stage("slow", "demo", out / "slow", command)], out)
"""


def test_second_runner_is_refused_and_a_killed_one_leaves_nothing_running(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(tmp_path)]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert runner.stdout.readline() == "up\n"
    with pytest.raises(MathCptError, match=f"in use by process {runner.pid}"):
        run_stages([stage(tmp_path, "a")], tmp_path)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert states([stage(tmp_path, "a")], tmp_path) == ["ran"]
    # The orphan held the pipe's other end; it is gone when the pipe is closed.
    assert runner.stdout.read() == ""
