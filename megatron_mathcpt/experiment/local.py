"""Run a grid's stages on this machine, one after the other, each as its own command.

What is complete is skipped, a failed stage stops only what depends on it, and running again goes on where it
stopped. Whether a complete folder is of today's inputs and settings is asked of the stage's own command,
which goes by the manifest: it does nothing, or refuses and never overwrites; only the report is made anew.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from megatron_mathcpt.errors import MathCptError, one_line
from megatron_mathcpt.experiment.stages import Stage, is_done
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.log import get_logger

OWNER_VARIABLE = "MATHCPT_RUN"  # set in every stage's environment: finds what a killed runner left behind
SAMPLE_SECONDS = 2.0
_logger = get_logger(__name__)


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage: `done` (was complete), `ran`, `failed` or `skipped`."""

    stage: str
    state: str
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    status: int = 0


def run_stages(stages: Sequence[Stage], out: Path) -> list[StageOutcome]:
    """Run `stages` in order; raises `MathCptError` if another run holds `out`."""
    with _lock(out):
        _end_leftovers(out)
        keys, timings = (_Record(out / name) for name in (".stages.json", "timings.json"))
        folders = {stage.name: stage.folder for stage in stages}
        outcomes: dict[str, StageOutcome] = {}
        for number, stage in enumerate(stages, 1):
            if any(outcomes[name].state in ("failed", "skipped") for name in stage.needs):
                outcomes[stage.name] = StageOutcome(stage.name, "skipped")
                continue
            key = stage.key(folders, out)
            complete = is_done(stage)
            if complete and keys.entries.get(stage.name) == key:  # asked before, with the same answer
                outcomes[stage.name] = StageOutcome(stage.name, "done")
                continue
            _logger.info("[%d/%d] %s: %s", number, len(stages), stage.name, _shown(stage.command))
            outcome = _run(stage, out)
            outcomes[stage.name] = outcome
            if outcome.state == "ran":
                if not complete or stage.name not in timings.entries:
                    timings.add(stage.name, round(outcome.seconds, 1))
                keys.add(stage.name, key)
            else:
                _logger.error("%s failed with status %d; fix it and run again", stage.name, outcome.status)
        return list(outcomes.values())


class _Record:
    """A JSON file of one entry a stage: the key it was last complete for, or the seconds that it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}

    def add(self, name: str, value: str | float) -> None:
        self.entries[name] = value
        write_atomically(self._path, json.dumps(self.entries, indent=1).encode())


def _shown(command: Sequence[str]) -> str:
    here = str(Path.cwd()) + os.sep
    return " ".join(["python", *(word.replace(here, "") for word in command[1:])])


def _run(stage: Stage, out: Path) -> StageOutcome:
    start = time.monotonic()
    environment = {**os.environ, OWNER_VARIABLE: str(out.resolve())}
    process = subprocess.Popen(stage.command, env=environment)
    root, peak, status = psutil.Process(process.pid), 0, None
    try:
        while status is None:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(SAMPLE_SECONDS)
            peak = max(peak, _tree_memory_bytes(root))
    except BaseException:  # Ctrl-C or a signal turned exception: the stage is ended before we are
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if status == 0 and not is_done(stage):
        raise MathCptError(f"{stage.name}: ended well but left no manifest in {stage.folder}; this is a bug")
    state = "failed" if status else "ran"
    return StageOutcome(stage.name, state, time.monotonic() - start, peak / 2**30, status)


def _tree_memory_bytes(root: psutil.Process) -> int:
    """Proportional set size of a process and all below it."""
    total = 0
    try:
        for process in [root, *root.children(recursive=True)]:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except psutil.Error:  # a process ended while it was read; the next sample is seconds away
        return total
    return total


@contextmanager
def _lock(out: Path) -> Iterator[TextIO]:
    """Hold `out` for one runner; raises `MathCptError` naming the process that has it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise MathCptError(
                f"{out}: in use by process {one_line(file.read())}; wait for it or end it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def _end_leftovers(out: Path) -> None:
    """Kill stages that a killed runner of this folder left running; they would write beside ours."""
    mine = str(out.resolve())
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(OWNER_VARIABLE) == mine:
                process.kill()
                process.wait(10)
                _logger.info("ended process %d, left by a run that was killed", process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def exit_status(outcomes: Sequence[StageOutcome]) -> int:
    """0, or the status of the first stage that failed."""
    return next((outcome.status for outcome in outcomes if outcome.state == "failed"), 0)


def handle_termination() -> None:
    """Turn SIGTERM into an exception, so that the running stage is ended before this process is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
