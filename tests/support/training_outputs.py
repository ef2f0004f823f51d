"""The metrics that a training run logged, and its folder rewound to an earlier checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from megatron_mathcpt.train.metrics import TIMINGS
from tests.support.json_lines import read_json_lines


def rewind(out: Path, step: int) -> None:
    """Make a finished run resumable from its checkpoint of `step`."""
    (out / "manifest.json").unlink()
    for path in sorted((out / "checkpoints").glob("step_*")):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


def metric_rows(out: Path) -> list[dict[str, Any]]:
    """The metrics that are bitwise equal in a repeated run: all but timings."""
    rows = read_json_lines(out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def losses_of(out: Path) -> list[float]:
    return [row["loss"] for row in read_json_lines(out / "metrics.jsonl") if "loss" in row]
