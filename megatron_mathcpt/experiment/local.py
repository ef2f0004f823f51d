"""Run a study's stages on this machine, each as its own command, as many at a time as fit its processes.

A complete stage is skipped, a failed one stops only what depends on it, and running again resumes. Whether a
complete folder matches the current inputs and settings is decided by the stage's own command from the
manifest: the command does nothing, or refuses and never overwrites; only the report is rewritten.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.experiment.stages import Stage
from megatron_mathcpt.formats.files import read_json, write_atomically
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.own_python import own_command, own_environment

KIND = "study"  # of a results folder
OWNER_VARIABLE = "MATHCPT_RUN"  # set in every stage's environment, to find what a killed runner left running
_POLL_SECONDS = 0.05
_logger = get_logger(__name__)


@dataclass(frozen=True)
class StageOutcome:
    """Outcome of a stage: `done` (was complete before), `ran`, `failed` or `skipped`."""

    stage: str
    state: str
    seconds: float = 0.0
    status: int = 0


@dataclass(frozen=True)
class _Running:
    """A stage at work; its key, whether its folder was complete, and the text of its config before."""

    stage: Stage
    process: subprocess.Popen[str]
    start: float
    key: str
    complete: bool
    config: str


def run_stages(stages: Sequence[Stage], out: Path, processes: int = 1) -> list[StageOutcome]:
    """Run `stages`, at most as many at a time as have `processes` together; their outcomes.

    Raises `ConfigError` as `locked_folder` does.
    """
    with locked_folder(out, KIND):
        _end_leftovers(out)
        runner = _Runner(stages, out, processes)
        try:
            runner.run()
        finally:  # Ctrl-C or a signal as an exception: no stage must outlive this process
            for one in runner.running:
                one.process.send_signal(signal.SIGTERM)
            for one in runner.running:
                one.process.wait()
    return [runner.outcomes[stage.name] for stage in stages]


class _Runner:
    """Stages that wait, run and have ended; `keys` and `timings` are files in the folder of results."""

    def __init__(self, stages: Sequence[Stage], out: Path, processes: int) -> None:
        self.waiting, self.running, self.outcomes = [*stages], list[_Running](), dict[str, StageOutcome]()
        self.out, self.processes, self.count = out, processes, len(stages)
        self.folders = {stage.name: stage.folder for stage in stages}
        # For each stage: the key with which it was last complete, and the seconds it took.
        self.keys, self.timings = out / ".stages.json", out / "timings.json"

    def run(self) -> None:
        while self.waiting or self.running:
            # The first that can start, also if a later one would find room before it.
            stage = next((one for one in self.waiting if self.outcomes.keys() >= {*one.needs}), None)
            taken = sum(one.stage.processes for one in self.running)
            if stage and (not self.running or taken + stage.processes <= self.processes):
                self.waiting.remove(stage)
                self.start(stage)
                continue
            time.sleep(_POLL_SECONDS)
            for one in [one for one in self.running if one.process.poll() is not None]:
                self.running.remove(one)
                self.finish(one)

    def start(self, stage: Stage) -> None:
        name = stage.name
        if any(self.outcomes[need].state in ("failed", "skipped") for need in stage.needs):
            self.outcomes[name] = StageOutcome(name, "skipped")
            return
        key, complete = stage.key(self.folders, self.out), stage.is_done()
        if complete and _noted(self.keys).get(name) == key:  # its own command has already checked this key
            self.outcomes[name] = StageOutcome(name, "done")
            return
        command = " ".join(stage.command[1:]).replace(f"{Path.cwd()}{os.sep}", "")
        number = self.count - len(self.waiting)
        _logger.info("[%d/%d] %s: python %s", number, self.count, name, command)
        config = stage.write_config()
        process = _process(stage, self.out, alone=stage.processes >= self.processes)
        self.running.append(_Running(stage, process, time.monotonic(), key, complete, config))

    def finish(self, ended: _Running) -> None:
        stage, status, seconds = ended.stage, ended.process.returncode, time.monotonic() - ended.start
        if status == 0 and not stage.is_done():
            raise MathCptError(
                f"{stage.name}: succeeded without a manifest in {stage.folder}; report this bug"
            )
        self.outcomes[stage.name] = StageOutcome(stage.name, "failed" if status else "ran", seconds, status)
        if status:
            if ended.complete and ended.config and stage.config:
                write_atomically(stage.config.path, ended.config.encode())  # refused: it is that folder's
            _logger.error("%s: failed with status %d; fix it and run again", stage.name, status)
            return
        if not ended.complete or stage.name not in _noted(self.timings):
            _note(self.timings, stage.name, round(seconds, 1))
        _note(self.keys, stage.name, ended.key)


def _noted(path: Path) -> dict[str, str | float]:
    return (
        read_json(path, dict[str, str | float], "delete it; the stages are then checked again")
        if path.is_file()
        else {}
    )


def _note(path: Path, name: str, value: str | float) -> None:
    write_atomically(path, json.dumps(_noted(path) | {name: value}, indent=1).encode())


def _process(stage: Stage, out: Path, *, alone: bool) -> subprocess.Popen[str]:
    """Start `stage`; if it is not `alone`, with its part of the cores and its name at each line it prints."""
    command, environment = own_command(stage.command[1:]), own_environment()
    environment[OWNER_VARIABLE] = str(out.resolve())
    if alone:
        elsewhere = 2 if sys.stdout is sys.stderr else None  # with --json
        return subprocess.Popen(command, env=environment, stdout=elsewhere, text=True)
    if stage.kind != "run":  # each process of a run has one thread already
        environment["OMP_NUM_THREADS"] = str(stage.processes)
    both, pipe = subprocess.STDOUT, subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=both, text=True)
    Thread(target=_print_named, args=(stage.name, process.stdout)).start()
    return process


def _print_named(name: str, lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(f"{name}: {line}")


def _end_leftovers(out: Path) -> None:
    """Kill stages that a killed process left running in this folder; they would overwrite our files."""
    mine = str(out.resolve())
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.environ().get(OWNER_VARIABLE) == mine:
                process.kill()
                process.wait(10)
                _logger.info("ended process %d, left by a run that was killed", process.pid)
