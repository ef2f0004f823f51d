"""JSON Lines files of the tests' own rows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete row; a torn last line, left by a kill, is skipped."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]
