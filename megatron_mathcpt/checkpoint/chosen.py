"""Which of a run's checkpoints stands for it: is converted, scored and started from. No torch."""

import json
from pathlib import Path

from megatron_mathcpt.checkpoint.folder import checkpoint_path, newest_checkpoint
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.manifest import FILE_NAME, load_manifest

METRICS = "metrics.jsonl"


def chosen_checkpoint(folder: Path) -> Path:
    """The one that a finished run's `checkpoint.choose` says, else the newest; `folder` if it is one itself.

    Raises `CheckpointError` if there is none, or if the chosen one was removed.
    """
    if not (folder / FILE_NAME).is_file() or not (folder / METRICS).is_file():
        return newest_checkpoint(folder)
    choose = load_manifest(folder, "run").config["checkpoint"].get("choose", "newest")
    if choose == "newest":
        return newest_checkpoint(folder)
    step = lowest_validation_step(folder / METRICS)
    path = checkpoint_path(folder, step)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: not there, but step {step} has the lowest validation loss; raise checkpoint.keep"
        )
    return path


def lowest_validation_step(metrics: Path) -> int:
    """The step whose mean loss over the validation sets is lowest; the first of equals.

    Every set counts alike. A step done again after a stop counts as it was done last.
    """
    losses: dict[int, float] = {}
    for line in metrics.read_text(encoding="utf-8").split("\n")[:-1]:  # a torn last line was never a row
        row = json.loads(line)
        if found := row.get("validation"):
            losses[row["step"]] = sum(found.values()) / len(found)
    if not losses:
        raise CheckpointError(f"{metrics}: no validation loss to choose by; set checkpoint.choose: newest")
    return min(sorted(losses), key=losses.__getitem__)
