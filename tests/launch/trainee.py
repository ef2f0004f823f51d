"""A program with the contract of `megatron_mathcpt.train` and nothing else, so that Slurm's side shows fast.

It joins from the environment, counts steps, saves when a signal asks for it, and ends with 0, 2 or 75.
Every rank appends `attempt step` to its own file: the trace of what was done.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--hold-at", type=int, help="stay at this step of attempt 0 until a signal comes")
    parser.add_argument("--kill-at", help="RANK:STEP:ATTEMPT")
    parser.add_argument("--fail", type=int, help="end with this status at once")
    options = parser.parse_args()
    stopping: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopping.append(number))
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    assert os.environ["MASTER_ADDR"] == "node1" or size == 1
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 32000
    options.run.mkdir(exist_ok=True)
    if options.fail is not None:
        time.sleep(0.3 * rank)  # rank 0 ends first, the others are ended because of it
        sys.exit(options.fail)
    done = sorted((options.run / "checkpoints").glob("step_*/manifest.json"))
    step = int(done[-1].parent.name.removeprefix("step_")) if done else 0
    trace = (options.run / f"rank_{rank}").open("a")
    while step < options.steps:
        while options.hold_at == step and attempt == "0" and not stopping:
            time.sleep(0.02)
        time.sleep(STEP_SECONDS)
        if options.kill_at == f"{rank}:{step}:{attempt}":
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        trace.write(f"{attempt} {step}\n")
        trace.flush()
        if stopping or step % options.interval == 0 or step == options.steps:
            save(options.run, step, rank, size)
        if stopping and step < options.steps:
            sys.exit(75)


def save(run: Path, step: int, rank: int, size: int) -> None:
    """Rank 0 commits once all ranks came; nobody leaves before."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(rank)).touch()
    while rank == 0 and sum((folder / str(other)).exists() for other in range(size)) < size:
        time.sleep(0.01)
    if rank == 0:
        (folder / "manifest.json").touch()
    while not (folder / "manifest.json").exists():
        time.sleep(0.01)


if __name__ == "__main__":
    main()
