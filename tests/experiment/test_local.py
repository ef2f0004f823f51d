"""Stages here are real commands that write a folder and its manifest, only smaller than the project's own."""

import json
import os
import shutil
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
from megatron_mathcpt.errors import run_command
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, write_manifest
folder, text, *needs = sys.argv[1:]
folder = pathlib.Path(folder)
folder.mkdir(exist_ok=True)
with (folder.parent / "log").open("a") as log: log.write(folder.name + " ")
if text == "fail": sys.exit(2)
what = {
    "inputs": {name: load_manifest(folder.parent / name, None).fingerprint() for name in needs},
    "config": {"text": text},
}
def work():
    if not is_complete(folder, "demo", **what):
        (folder / "a.txt").write_text(text)
        write_manifest(folder, "demo", counts={}, **what)
run_command(work)
"""


def stage(out: Path, name: str, text: str = "x", needs: tuple[str, ...] = ()) -> Stage:
    folder = out / name
    return Stage(name, "demo", folder, (sys.executable, "-c", WRITE, str(folder), text, *needs), needs)


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


def test_changed_settings_or_inputs_are_refused_by_the_stage_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = [stage(tmp_path, "a"), stage(tmp_path, "b", needs=("a",))]
    run_stages(chain, tmp_path)
    changed = run_stages([stage(tmp_path, "a", "y"), chain[1]], tmp_path)
    assert [(outcome.state, outcome.status) for outcome in changed] == [("failed", 2), ("skipped", 0)]
    assert "a: already built with another config 'text' ('x', now 'y')" in capfd.readouterr().err
    assert (tmp_path / "a" / "a.txt").read_text() == "x"
    shutil.rmtree(tmp_path / "a")
    remade = run_stages([stage(tmp_path, "a", "y"), chain[1]], tmp_path)
    assert [outcome.state for outcome in remade] == ["ran", "failed"]
    assert "b: already built with another input 'a'" in capfd.readouterr().err


def test_a_complete_folder_that_was_not_noted_is_asked_and_kept(tmp_path: Path) -> None:
    run_stages([stage(tmp_path, "a")], tmp_path)
    (tmp_path / ".stages.json").unlink()
    noted = {"a": 9.5}
    (tmp_path / "timings.json").write_text(json.dumps(noted))
    before = (tmp_path / "a" / "manifest.json").stat().st_mtime_ns
    assert run_stages([stage(tmp_path, "a")], tmp_path)[0].state == "ran"
    assert (tmp_path / "a" / "manifest.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "timings.json").read_text()) == noted
    assert run_stages([stage(tmp_path, "a")], tmp_path)[0].state == "done"


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
