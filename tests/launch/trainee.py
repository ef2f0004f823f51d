"""A program with the contract of `megatron_mathcpt.train` and nothing else, so that Slurm's side shows fast.

It joins from the environment, counts steps, saves when a signal asks for it, and ends with 0, 2 or 75.
Every rank appends `attempt step` to its own file: the trace of what was done.
"""

import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS, STEPS, INTERVAL = 0.05, 20, 5


def main(folder: str, *words: str) -> None:
    """`hold-at=STEP`: of attempt 0, until a signal comes; `kill-at=RANK:STEP:ATTEMPT`; `fail=STATUS`."""
    run, asked, stopping = Path(folder), dict(word.split("=") for word in words), list[int]()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopping.append(number))
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    assert os.environ["MASTER_ADDR"] == "node1" or size == 1
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 32000
    run.mkdir(exist_ok=True)
    if "fail" in asked:
        time.sleep(0.3 * rank)  # rank 0 ends first, the others are ended because of it
        sys.exit(int(asked["fail"]))
    done = sorted((run / "checkpoints").glob("step_*/manifest.json"))
    step = int(done[-1].parent.name.removeprefix("step_")) if done else 0
    steps = int(asked.get("steps", STEPS))
    while step < steps:
        while asked.get("hold-at") == str(step) and attempt == "0" and not stopping:
            time.sleep(0.02)
        time.sleep(STEP_SECONDS)
        if asked.get("kill-at") == f"{rank}:{step}:{attempt}":
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        with (run / f"rank_{rank}").open("a") as trace:
            trace.write(f"{attempt} {step}\n")
        if stopping or step % INTERVAL == 0 or step == steps:
            save(run / "checkpoints" / f"step_{step:08d}", rank, size)
        if stopping and step < steps:
            sys.exit(75)


def save(folder: Path, rank: int, size: int) -> None:
    """Rank 0 commits once all ranks came; nobody leaves before."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(rank)).touch()
    while not (folder / "manifest.json").exists():
        if rank == 0 and all((folder / str(other)).exists() for other in range(size)):
            (folder / "manifest.json").touch()
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
