"""The command a run starts for each of its checkpoints, to have it scored while the training goes on."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from megatron_mathcpt.log import get_logger

logger = get_logger(__name__)
# What makes a process a worker of this run (train/launch.py); the command is none.
_OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MATHCPT_LAUNCHER")
_PATIENCE_SECONDS = 60.0


def start_evaluation(command: Sequence[str], checkpoint: Path) -> None:
    """Run `command CHECKPOINT`, which hands the work on (sbatch does) and returns; no shell reads it.

    That it fails, or takes longer than a minute, is logged: the training is worth more than a score.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    try:
        subprocess.run(
            [*command, str(checkpoint.resolve())],
            env=environment,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=_PATIENCE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s: its evaluation was not started (%s)", checkpoint, error)
