"""Saving, saving while training, and resuming on this machine: seconds, memory, and the losses of no save.

    python tests/benchmarks/saves.py [--layers 12] [--rows bf16 fp8_delayed] [--out FILE]
    python tests/benchmarks/saves.py --ranks 2 --layers 24 --hidden 1024      two replicas on a CPU, over gloo

Each row trains six steps three times on made-up tokens, deterministically: without a save; with a save after
the second and one written asynchronously after the third; and resumed from that one. The table says what a
save takes of time and of GPU and host memory above the training's own, and the largest difference of a loss.

On a CPU saves then take turns with plain writes of each rank's bytes by all ranks at once, after a sync of
the whole disk, so let nothing else run; memory is the peak of a rank's resident set above what it had. Bars
of two ranks: bytes of a rank within 10 % of half; memory as allowed, 1.3 x the rank's share + 0.3 GB; a save
>= 0.75 of a plain write's speed.
"""

import json
import os
import statistics
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from made_up_run import ON_GPU, build, check_rows, experiment, shape_of, take_step
from measuring import Cost, cost, in_ranks, resident

from megatron_mathcpt import parallel
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.train.process import set_deterministic

GIB = 2**30
STEPS = 6
TURNS = ("saves", "plain_writes", "bytes_above")
DISK_BYTES = 2**31 if ON_GPU else 3 * 2**26  # written to know the disk


def gpu_peak() -> float:
    """GiB at the highest since the last call."""
    if not ON_GPU:
        return 0.0
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def step(state: Any) -> Cost:
    """One step; its result is the loss."""

    def work() -> float:
        result = take_step(state)
        return (result.losses[0, 0] / result.losses[0, 1]).item()

    return cost(work)


def save(state: Any, *, async_save: bool = False) -> float:
    """Seconds until training can continue."""
    from megatron_mathcpt.formats.run_folder import CheckpointCounts
    from megatron_mathcpt.train.components import gather_parameters, unwrap

    def work() -> None:
        gather_parameters(state)
        counts = CheckpointCounts(step=state.step)
        state.saver.save(unwrap(state.model), state.optimizer, counts, async_save=async_save)

    return cost(work).wall


def plain_seconds(path: Path, size: int) -> float:
    """Seconds to write and sync so many bytes by one thread."""
    block = os.urandom(2**26)

    def write() -> None:
        with path.open("wb") as file:
            for begin in range(0, size, len(block)):
                file.write(block[: size - begin])
            file.flush()
            os.fsync(file.fileno())

    return cost(write).wall


def train_and_save(state: Any) -> tuple[dict[str, Any], list[float]]:
    """Seconds of saves, blocking and asynchronous, and the losses."""
    losses = [step(state).result for _ in range(2)]
    found: dict[str, Any] = {"gpu_gib_training": gpu_peak(), "host_gib_before": resident() / 2**30}
    found["save_seconds"] = save(state)
    found |= {"gpu_gib_in_save": gpu_peak(), "host_gib_in_save": resident() / 2**30}
    losses.append(step(state).result)
    found["async_seconds_before_the_next_step"] = save(state, async_save=True)
    steps = []
    for _ in range(STEPS - 3):
        steps.append(step(state))
        state.saver.poll()
    found["gpu_gib_beside_save"] = gpu_peak()
    found["async_seconds_after_the_last_step"] = cost(state.saver.finish).wall
    found["step_seconds_beside_a_save"] = [one.wall for one in steps]
    return found, losses + [one.result for one in steps]


def take_turns(state: Any, file: Path, share: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of saves and of plain writes of `share` bytes, and the bytes of memory that a save took."""
    found: dict[str, list[float]] = {name: [] for name in TURNS}

    def settle() -> None:
        state.saver.finish()  # removes old checkpoints, in training in the background
        os.sync()
        torch.distributed.barrier()

    for _ in range(rounds):
        state.step += 1
        settle()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now the current size
        before = resident("VmRSS")
        found["saves"].append(save(state))
        found["bytes_above"].append(resident("VmHWM") - before)
        settle()
        found["plain_writes"].append(plain_seconds(file, share))
    return found


def measure(arguments: Namespace, row: str, folder: Path) -> dict[str, Any]:
    """One row, as this rank sees it."""
    use_cpu()
    set_deterministic(True)
    from megatron_mathcpt.checkpoint.load import load_state
    from megatron_mathcpt.formats.run_folder import checkpoint_path
    from megatron_mathcpt.train.components import unwrap

    hidden = arguments.hidden
    sizes = arguments.layers, hidden, hidden // 64, max(1, hidden // 256), hidden * 8 // 3 // 64 * 64, 32_000
    config = experiment(arguments, shape_of(*sizes), row, arguments.ranks)
    if arguments.ranks > 1:
        torch.set_num_threads(1)
        layout = parallel.start(config.parallel, 1)
    else:
        layout = parallel.start_alone(config.parallel)
    state = build(config, layout, folder)
    alone = [step(state) for _ in range(STEPS)]
    del state
    state = build(config, layout, folder)
    found, losses = train_and_save(state)
    del state
    path, plain = checkpoint_path(folder, 3), [one.result for one in alone]
    files = {file.name: file.stat().st_size for file in path.iterdir()}
    share = sum(size for name, size in files.items() if f"__{layout.rank}_" in name)
    state = build(config, layout, folder)
    state.step = 3
    gpu_peak()
    found["load_seconds"] = cost(partial(load_state, path, unwrap(state.model), state.optimizer, layout)).wall
    found["gpu_gib_in_load"] = gpu_peak()
    after = [step(state).result for _ in range(STEPS - 3)]
    file = folder / f"plain{layout.rank}"
    found |= take_turns(state, file, share, arguments.rounds)
    del state
    parallel.stop()
    size = sum(files.values()) / 1e9
    return found | {
        "row": row,
        "checkpoint_gb": size,
        "rank_bytes": share,
        "save_gb_per_second": size / found["save_seconds"],
        "disk_gb_per_second": DISK_BYTES / 1e9 / plain_seconds(file, DISK_BYTES),
        "step_seconds": sorted(one.wall for one in alone)[STEPS // 2],
        "losses": plain,
        "largest_difference_with_saves": max(abs(a - b) for a, b in zip(losses, plain, strict=True)),
        "largest_difference_resumed": max(abs(a - b) for a, b in zip(after, plain[3:], strict=True)),
    }


def line(found: dict[str, Any]) -> str:
    """What a rank wrote and needed, medians of the rounds."""
    share = found["rank_bytes"] / 1e9
    took, plain, above = (statistics.median(found[name]) for name in TURNS)
    return (
        f"{1e3 * share:.1f} MB at {share / took:.2f} GB/s, {plain / took:.2f} of a plain write's, "
        f"{above / 1e9:.3f} GB above that before, allowed {1.3 * share + 0.3:.2f}"
    )


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12 if ON_GPU else 2)
    parser.add_argument("--hidden", type=int, default=1536 if ON_GPU else 128)
    parser.add_argument("--rows", nargs="+", default=["bf16"], help="as in gpu_training.py")
    parser.add_argument("--ranks", type=int, default=1, help="replicas that share a checkpoint")
    parser.add_argument("--rounds", type=int, default=0 if ON_GPU else 3, help="of a save and a plain write")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder's")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    fixed = {"shape": "made-up", "tp": 1, "pp": 1, "cp": 1, "micro_batch_size": 1, "microbatches": 2}
    parser.set_defaults(**fixed, seq_length=2048 if ON_GPU else 64)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    check_rows(arguments.rows)
    found: list[dict[str, Any]] = []
    for row in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="saves_", dir=arguments.folder) as name:
            given = arguments, row, Path(name)
            alone = arguments.ranks == 1
            found += [measure(*given)] if alone else in_ranks(arguments.ranks, measure, *given)
        print(json.dumps(found[-1], indent=1), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1))
    for row in found:
        if arguments.rounds:
            print(f"{row['row']}: a rank's", line(row))
        print(
            f"{row['row']}: {row['save_gb_per_second']:.2f} GB/s (disk {row['disk_gb_per_second']:.2f}), "
            f"losses differ by "
            f"{row['largest_difference_with_saves']:.1e} with saves, "
            f"{row['largest_difference_resumed']:.1e} resumed"
        )


if __name__ == "__main__":
    main()
