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


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"  # the stages' own script is outside of it


def states(stages: list[Stage], out: Path) -> list[str]:
    return [outcome.state for outcome in run_stages(stages, out)]


def test_complete_stages_are_skipped_even_after_a_move_and_asked_if_not_noted(
    out: Path, tmp_path: Path
) -> None:
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


def test_a_failed_stage_stops_only_what_needs_it(out: Path) -> None:
    first, last = stage(out, "a", text="fail"), stage(out, "d", "b", "c")
    outcomes = run_stages([first, stage(out, "b", "a"), stage(out, "c"), last], out)
    assert [outcome.state for outcome in outcomes] == ["failed", "skipped", "ran", "skipped"]
    assert [outcome.status for outcome in outcomes] == [2, 0, 0, 0]
    assert (out / "log").read_text().split() == ["a", "c"]


def test_changed_settings_or_inputs_are_refused_by_the_stage_itself(out: Path) -> None:
    changed, last = stage(out, "a", text="y"), stage(out, "b", "a")
    run_stages([stage(out, "a"), last], out)
    assert states([changed, last], out) == ["failed", "skipped"]
    assert (out / "a" / "a.txt").read_text() == "x"
    path = out / "configs" / "a.yaml"
    path.parent.mkdir()
    path.write_text("x")
    asked = replace(changed, config=Config(path, "y", {}))
    assert states([asked, last], out) == ["failed", "skipped"]
    assert path.read_text() == "x", "that of the finished folder"
    shutil.rmtree(out / "a")
    assert states([changed, last], out) == ["ran", "failed"]


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


MEET = """
import pathlib, sys, time
from megatron_mathcpt.formats.manifest import write_manifest
folder, other = map(pathlib.Path, sys.argv[1:])
folder.mkdir()
end = time.monotonic() + 60
while not other.exists():
    if time.monotonic() > end: sys.exit(3)
    time.sleep(0.01)
print("met", other.name)
write_manifest(folder, "demo", counts={}, inputs={}, config={})
"""


def test_stages_run_at_a_time_if_there_is_room_and_name_their_lines(
    out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def meeting(name: str, other: str) -> Stage:
        command = (sys.executable, "-c", MEET, str(out / name), str(out / other))
        return Stage(name, "demo", out / name, command)

    wide = replace(stage(out, "c"), processes=2)
    assert [
        outcome.state for outcome in run_stages([meeting("a", "b"), meeting("b", "a"), wide], out, 2)
    ] == ["ran"] * 3
    lines = capfd.readouterr().err.splitlines()
    assert "a: met b" in lines
    assert "b: met a" in lines
