"""Stages here are real commands that write a folder and its manifest, only smaller than the project's own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.experiment.local import exit_status, run_stages
from megatron_mathcpt.experiment.stages import Stage

WRITE = """
import pathlib, sys
from megatron_mathcpt.formats.manifest import write_manifest
folder, text = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(exist_ok=True)
with (folder.parent / "log").open("a") as log: log.write(folder.name + " ")
if text == "fail": sys.exit(2)
(folder / "a.txt").write_text(text)
write_manifest(folder, "demo", inputs={}, counts={}, config={})
"""


def stage(out: Path, name: str, text: str = "x", needs: tuple[str, ...] = ()) -> Stage:
    folder = out / name
    return Stage(name, "demo", folder, (sys.executable, "-c", WRITE, str(folder), text), needs)


def ran(out: Path) -> list[str]:
    return (out / "log").read_text().split()


def test_complete_stages_are_skipped_even_after_a_move(tmp_path: Path) -> None:
    out = tmp_path / "one"
    first = run_stages([stage(out, "a"), stage(out, "b", needs=("a",))], out)
    assert [outcome.state for outcome in first] == ["ran", "ran"]
    moved = out.rename(tmp_path / "two")
    again = run_stages([stage(moved, "a"), stage(moved, "b", needs=("a",))], moved)
    assert [outcome.state for outcome in again] == ["done", "done"]
    assert ran(moved) == ["a", "b"]
    assert set(json.loads((moved / "timings.json").read_text())) == {"a", "b"}


def test_a_failed_stage_stops_only_what_needs_it(tmp_path: Path) -> None:
    stages = [
        stage(tmp_path, "a", "fail"),
        stage(tmp_path, "b", needs=("a",)),
        stage(tmp_path, "c"),
        stage(tmp_path, "d", needs=("b", "c")),
    ]
    outcomes = run_stages(stages, tmp_path)
    assert [outcome.state for outcome in outcomes] == ["failed", "skipped", "ran", "skipped"]
    assert exit_status(outcomes) == 2
    assert ran(tmp_path) == ["a", "c"]


def test_changed_settings_or_inputs_are_refused(tmp_path: Path) -> None:
    chain = [stage(tmp_path, "a"), stage(tmp_path, "b", needs=("a",))]
    run_stages(chain, tmp_path)
    with pytest.raises(MathCptError, match="a: complete, but for other inputs or settings"):
        run_stages([stage(tmp_path, "a", "y"), chain[1]], tmp_path)
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(
        manifest.read_text()
        .replace('"inputs":{}', '"inputs":{"q":"1"}')
        .replace('"inputs": {}', '"inputs": {"q": "1"}')
    )
    with pytest.raises(MathCptError, match="b: complete, but for other inputs"):
        run_stages(chain, tmp_path)


def test_folder_completed_but_not_noted_is_run_again(tmp_path: Path) -> None:
    run_stages([stage(tmp_path, "a")], tmp_path)
    (tmp_path / ".stages.json").unlink()
    assert run_stages([stage(tmp_path, "a")], tmp_path)[0].state == "ran"


RUNNER = """
import pathlib, sys
from megatron_mathcpt.experiment.local import run_stages
from megatron_mathcpt.experiment.stages import Stage
out = pathlib.Path(sys.argv[1])
command = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3600)")
run_stages([Stage("slow", "demo", out / "slow", command)], out)
"""


def test_second_runner_is_refused_and_a_killed_one_leaves_nothing_running(tmp_path: Path) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == "up\n"
    with pytest.raises(MathCptError, match=f"in use by process {runner.pid}"):
        run_stages([stage(tmp_path, "a")], tmp_path)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert run_stages([stage(tmp_path, "a")], tmp_path)[0].state == "ran"
    # The orphan held the pipe's other end; it is gone when the pipe is closed.
    assert runner.stdout.read() == ""
