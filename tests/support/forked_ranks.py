"""Train experiments one after another with forked ranks, some of which are first killed at random times."""

# Arguments: JSON rows of config and run folder, the number of ranks, and how often some are killed before all
# are restarted. Megatron-Core is imported once, before the forks, so a start costs a fraction of a second.
import json
import multiprocessing
import os
import random
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
from megatron_mathcpt.train.process import die_with_parent, free_port, local_world


def run_rank(config: Path, out: Path, rank: int, ranks: int, port: int) -> None:
    os.environ.update(local_world(rank, ranks, port), MATHCPT_LAUNCHER=str(os.getppid()))
    die_with_parent()
    sys.exit(not train_experiment(resolve_inputs(load_config(config, ExperimentConfig)), out))


def start_ranks(config: Path, out: Path, ranks: int, kill_random: random.Random | None) -> bool:
    """Start all ranks, of which `kill_random` kills some after a save; return whether the run finished."""
    before, port, fork = checkpoint_paths(out)[:1], free_port(), multiprocessing.get_context("fork")
    children = [fork.Process(target=run_rank, args=(config, out, rank, ranks, port)) for rank in range(ranks)]
    for child in children:
        child.start()

    def wait(done: Callable[[], bool]) -> None:
        while any(child.is_alive() for child in children) and not done():
            time.sleep(0.005)

    if kill_random is not None:
        wait(lambda: checkpoint_paths(out)[:1] != before)
        time.sleep(kill_random.uniform(0.0, 0.5))
        for child in kill_random.sample(children, kill_random.randint(1, ranks)):
            child.kill()
    wait(lambda: any(child.exitcode for child in children))
    deadline = time.monotonic() + 10  # for the others to exit by themselves
    wait(lambda: time.monotonic() > deadline)
    for child in children:
        child.kill()
        child.join()
    return (out / "manifest.json").is_file()


if __name__ == "__main__":
    jobs, ranks, kills = map(json.loads, sys.argv[1:])
    use_cpu()
    import megatron_mathcpt.train.loop  # noqa: F401 - imported before the forks

    kill_random = random.Random(1)
    for config, out in jobs:
        for killer in [*[kill_random] * kills, None]:
            if start_ranks(Path(config), Path(out), ranks, killer) != (killer is None):
                sys.exit(f"{out}: {'did not finish' if killer is None else 'finished before the last kill'}")
