"""A program with the exit statuses, signals and checkpoints of `megatron_mathcpt.train`, but no training."""

# It counts steps, saves at a signal, and exits with 0, 75 (to be requeued) or the given status. Every rank
# appends `attempt step` to its own file: the trace that the tests read.
import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS, STEPS, INTERVAL = 0.05, 20, 5


def main(folder: str, *options: str) -> None:
    """Options: `pause-at=STEP` (attempt 0 waits for a signal), `kill-at=RANK:STEP:ATTEMPT`, `fail=STATUS`."""
    run, given, signals = Path(folder), dict(option.split("=") for option in options), list[int]()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    assert os.environ["MASTER_ADDR"] == "node1" or size == 1
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 32000
    run.mkdir(exist_ok=True)
    if "fail" in given:
        time.sleep(0.3 * rank)  # rank 0 exits first, and Slurm then kills the others
        sys.stderr.write(f"error: rank {rank} fails\n  in two ways\nThe end\n")
        sys.exit(int(given["fail"]))
    done = sorted((run / "checkpoints").glob("step_*/manifest.json"))
    step = int(done[-1].parent.name.removeprefix("step_")) if done else 0
    steps = int(given.get("steps", STEPS))
    while step < steps:
        while given.get("pause-at") == str(step) and attempt == "0" and not signals:
            time.sleep(0.02)
        time.sleep(STEP_SECONDS)
        if given.get("kill-at") == f"{rank}:{step}:{attempt}":
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        with (run / f"rank_{rank}").open("a") as trace:
            trace.write(f"{attempt} {step}\n")
        if signals or step % INTERVAL == 0 or step == steps:
            save(run / "checkpoints" / f"step_{step:08d}", rank, size)
        if signals and step < steps:
            sys.exit(75)


def save(folder: Path, rank: int, size: int) -> None:
    """Rank 0 commits once all ranks have arrived, and the others wait for the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(rank)).touch()
    while not (folder / "manifest.json").exists():
        if rank == 0 and all((folder / str(other)).exists() for other in range(size)):
            (folder / "manifest.json").touch()
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
