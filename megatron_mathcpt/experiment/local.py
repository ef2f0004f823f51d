"""Run a study's stages on this machine, one after the other, each as its own command.

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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.experiment.stages import Stage
from megatron_mathcpt.formats.files import read_json, write_atomically
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.own_python import own_command, own_environment

KIND = "study"  # of a results folder
OWNER_VARIABLE = "MATHCPT_RUN"  # set in every stage's environment, to find what a killed runner left running
_logger = get_logger(__name__)


@dataclass(frozen=True)
class StageOutcome:
    """Outcome of a stage: `done` (was complete before), `ran`, `failed` or `skipped`."""

    stage: str
    state: str
    seconds: float = 0.0
    status: int = 0


def run_stages(stages: Sequence[Stage], out: Path) -> list[StageOutcome]:
    """Run `stages` in order; raises `ConfigError` as `locked_folder` does."""
    # For each stage: the key with which it was last complete, and the seconds it took.
    keys, timings = out / ".stages.json", out / "timings.json"
    folders = {stage.name: stage.folder for stage in stages}
    outcomes: dict[str, StageOutcome] = {}
    with locked_folder(out, KIND):
        _end_leftovers(out)
        for number, stage in enumerate(stages, 1):
            name = stage.name
            if any(outcomes[need].state in ("failed", "skipped") for need in stage.needs):
                outcomes[name] = StageOutcome(name, "skipped")
                continue
            key, complete = stage.key(folders, out), stage.is_done()
            if complete and _noted(keys).get(name) == key:  # its own command has already checked this key
                outcomes[name] = StageOutcome(name, "done")
                continue
            command = " ".join(stage.command[1:]).replace(f"{Path.cwd()}{os.sep}", "")
            _logger.info("[%d/%d] %s: python %s", number, len(stages), name, command)
            before = stage.write_config()
            outcomes[name] = outcome = _run(stage, out)
            if outcome.status and complete and before and stage.config:
                write_atomically(
                    stage.config.path, before.encode()
                )  # refused: the folder belongs to the previous config
            if outcome.status:
                _logger.error("%s: failed with status %d; fix it and run again", name, outcome.status)
                continue
            if not complete or name not in _noted(timings):
                _note(timings, name, round(outcome.seconds, 1))
            _note(keys, name, key)
    return list(outcomes.values())


def _noted(path: Path) -> dict[str, str | float]:
    return (
        read_json(path, dict[str, str | float], "delete it; the stages are then checked again")
        if path.is_file()
        else {}
    )


def _note(path: Path, name: str, value: str | float) -> None:
    write_atomically(path, json.dumps(_noted(path) | {name: value}, indent=1).encode())


def _run(stage: Stage, out: Path) -> StageOutcome:
    start = time.monotonic()
    environment = {**own_environment(), OWNER_VARIABLE: str(out.resolve())}
    elsewhere = 2 if sys.stdout is sys.stderr else None  # with --json
    process = subprocess.Popen(own_command(stage.command[1:]), env=environment, stdout=elsewhere)
    try:
        status = process.wait()
    except BaseException:  # Ctrl-C or a signal as an exception: the stage must not outlive this process
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if status == 0 and not stage.is_done():
        raise MathCptError(f"{stage.name}: succeeded without a manifest in {stage.folder}; report this bug")
    state = "failed" if status else "ran"
    return StageOutcome(stage.name, state, time.monotonic() - start, status)


def _end_leftovers(out: Path) -> None:
    """Kill stages that a killed process left running in this folder; they would overwrite our files."""
    mine = str(out.resolve())
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.environ().get(OWNER_VARIABLE) == mine:
                process.kill()
                process.wait(10)
                _logger.info("ended process %d, left by a run that was killed", process.pid)
