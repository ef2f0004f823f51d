"""Log messages on stderr with a time stamp, format progress in them, and show the end of others' logs.

Nothing in the package prints; only `commands/` writes results to stdout, through `rich`.
"""

import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

METER_SECONDS = 10.0


def get_logger(name: str) -> logging.Logger:
    """The logger `megatron_mathcpt.<name>`; the first call attaches one handler on stderr to the parent."""
    root = logging.getLogger("megatron_mathcpt")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(_add_rank)
        date = "%H:%M:%S" if sys.stderr.isatty() else "%Y-%m-%d %H:%M:%S"  # a batch log is read another day
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s%(rank)s %(message)s", date))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False  # libraries configure Python's root logger: each line would appear twice
    return root.getChild(name.removeprefix("megatron_mathcpt."))


def _add_rank(record: logging.LogRecord) -> bool:
    # Read now: a process may join its launcher after the imports.
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    record.rank = f" [rank {os.environ.get('RANK')}]" if several else ""
    return True


class Cell(str):
    """A table's text for `value`, which `--json` prints in its place."""

    value: object

    def __new__(cls, value: object, text: str) -> "Cell":
        cell = super().__new__(cls, text)
        cell.value = value
        return cell


def figure(value: float, form: str) -> Cell:
    """The cell of a number, such as 0.5 in the form `.2f`; NaN has a dash."""
    return Cell(value, "–" if math.isnan(value) else format(value, form))


def is_first_process() -> bool:
    """Whether this is rank 0 of its job, which alone writes results."""
    return int(os.environ.get("RANK") or 0) == 0


def progress(done: float, total: float, unit: str, before: float = 0, seconds: float = 0) -> str:
    """Format `45 of 180 MB, 15.0 MB/s, 0:09 left`; `before` was done when the `seconds` began."""
    form = ",.0f" if total >= 10 or total == int(total) else ",.2f"
    text = f"{done:{form}} of {total:{form}} {unit}"
    # What an earlier, interrupted process did must not count in the rate.
    if done <= before or not seconds:
        return f"{text}, after {clock(seconds)}" if seconds else text
    rate = (done - before) / seconds
    return f"{text}, {rate:,.1f} {unit}/s, {clock(max(0.0, total - done) / rate)} left"


@contextmanager
def reporting(
    logger: logging.Logger, text: Callable[[float], str], every: float | None = None
) -> Iterator[None]:
    """Log `text(seconds)` every 10 seconds of the block, and at the end of one that took so long.

    A thread does it, as one batch, file or model may take minutes. Only the first process of a job logs.
    """
    begin, ended = time.monotonic(), threading.Event()
    wait = (every or METER_SECONDS) if is_first_process() else threading.TIMEOUT_MAX

    def report() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while not ended.wait(wait):
            with suppress(OSError):  # of a file that was renamed meanwhile
                logger.info(text(time.monotonic() - begin))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if (seconds := time.monotonic() - begin) >= wait:
        logger.info(text(seconds))


def clock(seconds: float) -> str:
    """Format seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def last_lines(path: Path, count: int = 15, width: int = 300) -> list[str]:
    """The last lines of a log that are not empty, cut to `width` characters, without terminal controls."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * count * width))
        text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", file.read().decode("utf-8", "replace"))
    plain = ("".join(filter(str.isprintable, line.expandtabs())) for line in re.split(r"[\r\n]", text))
    return [line[:width].rstrip() for line in plain if line.strip()][-count:]


def scaled(number: float, unit: str = "") -> str:
    """Format a count as 80.39B, or with a unit as 12.3 ms or 5.12 GB: four digits at most."""
    number = float(f"{number:.4g}")  # first, so that 999,990 is 1M
    least = -2 if unit else 0
    power = min(4, max(least, math.floor(math.log10(abs(number)) / 3))) if number else 0
    sign = ("µ", "m", "", "k", "M", "G" if unit else "B", "T")[power + 2]
    return f"{number / 1000**power:.4g}{' ' if unit else ''}{sign}{unit}"
