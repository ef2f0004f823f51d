"""Messages on stderr with a time stamp, and append-only JSON lines for machines.

Nothing in the package prints; a tool's result goes to stdout through `rich` in `tools/` alone.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any


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


class JsonLines:
    """An append-only file of JSON lines; each row is flushed, so a kill loses at most one torn line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append `row` as one line."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a `JsonLines` file; a torn last line, left by a kill, is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
