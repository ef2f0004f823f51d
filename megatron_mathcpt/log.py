"""Messages on stderr with a time stamp, and how a message says how far a piece of work is.

Nothing in the package prints; a verb's result goes to stdout through `rich` in `commands/` alone.
"""

import logging
import os
import sys


def get_logger(name: str) -> logging.Logger:
    """The logger `megatron_mathcpt.<name>`, with one handler on stderr set up at first use."""
    root = logging.getLogger("megatron_mathcpt")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return root.getChild(name.removeprefix("megatron_mathcpt."))


def is_first_process() -> bool:
    """Whether this process is the first of its job, which alone writes what all came to."""
    return int(os.environ.get("RANK", "0")) == 0


def progress(done: float, total: float, unit: str, before: float = 0, seconds: float = 0) -> str:
    """`45 of 180 MB, 15.0 MB/s, 0:09 left`; the rate is that since `before` was done, `seconds` ago."""
    text = f"{done:,.0f} of {total:,.0f} {unit}"
    if done <= before or not seconds:
        return text
    rate = (done - before) / seconds
    return f"{text}, {rate:,.1f} {unit}/s, {clock(max(0.0, total - done) / rate)} left"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
