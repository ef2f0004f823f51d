"""Trains by two forked ranks, killing one or both at random times, and starting again, until the end.

Arguments: config, `--out` run folder, `--kills` number. Megatron-Core is imported once and forked, so an
attempt costs a fraction of a second.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.formats.run_folder import checkpoint_paths
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.process import free_port, local_world

RANKS = 2


def start(config: Path, out: Path, rank: int, port: int) -> int:
    """One rank, as a child of this process."""
    child = os.fork()
    if child == 0:
        finished = False
        try:
            os.environ.update(local_world(rank, RANKS, port))
            finished = train_experiment(resolve_inputs(load_config(config, ExperimentConfig)), out)
        finally:
            os._exit(not finished)
    return child


def attempt(config: Path, out: Path, dice: random.Random | None) -> bool:
    """One start; killed after a save and a random while if there are dice. True if the run is finished."""
    before, port = checkpoint_paths(out)[:1], free_port()
    children = [start(config, out, rank, port) for rank in range(RANKS)]

    def wait(done: Callable[[], bool]) -> None:
        while children and not done():
            time.sleep(0.005)
            children[:] = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]

    if dice is not None:
        wait(lambda: checkpoint_paths(out)[:1] != before)
        time.sleep(dice.uniform(0.0, 0.5))
        for child in dice.sample(children, dice.randint(1, len(children))) if children else ():
            os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + (10 if dice else 600)
    wait(lambda: time.monotonic() > deadline)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return (out / "manifest.json").is_file()


if __name__ == "__main__":
    config, out, kills = Path(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[5])
    use_cpu()
    import megatron_mathcpt.train.loop  # noqa: F401 - imported before the forks

    dice = random.Random(1)
    for killed in range(kills):
        if attempt(config, out, dice):
            sys.exit(f"finished after {killed} of {kills} kills; give it more steps")
    if not attempt(config, out, None):
        sys.exit("did not finish")
