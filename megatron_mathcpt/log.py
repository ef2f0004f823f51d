"""Messages on stderr with a time stamp, and append-only JSON lines for machines.

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
