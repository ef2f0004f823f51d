"""Checkpoint saves against raw write + fsync of the same bytes to the same disk, and what saves beside cost.

    python tests/benchmarks/checkpoint_save.py [--rounds 5] [--layers 8] [--folder DIR]

The ways take turns, one of each a round, after a sync of the whole disk; wall seconds count, since a disk is
waited for, so let nothing else run. `held` is how long the training loop stands still: the calls of the save,
and what the steps that ran beside the writing took longer than others. The first save beside, which gets its
memory from the system, stands by itself. Bars: save >= 0.75 of raw bandwidth, beside held <= 10 % of a save.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as stock
from training_step import SHAPE, experiment, write_corpus

from megatron_mathcpt.checkpoint.folder import checkpoint_paths
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.train.launch import free_port, local_world

WIDE = SHAPE | {"hidden_size": 512, "ffn_hidden_size": 1408, "num_attention_heads": 8, "num_query_groups": 4}


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def write_raw(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_stock(folder: Path, state: Any) -> None:
    """torch's own distributed checkpoint of the same tensors."""
    tensors = {f"weight{n}": weight for n, weight in enumerate(state.model[0].parameters())}
    for n, kept in enumerate(state.optimizer.optimizer.state.values()):
        tensors |= {f"{name}{n}": value for name, value in kept.items()}
    stock.save(tensors, storage_writer=stock.FileSystemWriter(folder, sync_files=True))


class Beside:
    """Saves beside the steps, and keeps what they cost."""

    def __init__(self, state: Any, step: Callable[[], None], undisturbed: float) -> None:
        self.state, self.step, self.undisturbed = state, step, undisturbed
        self.calls: list[float] = []
        self.slower: list[float] = []

    def __call__(self) -> None:
        from megatron_mathcpt.train.loop import save

        called = [seconds_of(lambda: save(self.state, beside=True))]
        steps = []
        while self.state.saver._pending is not None:
            steps.append(seconds_of(self.step))
            called.append(seconds_of(self.state.saver.poll))
        self.calls.append(sum(called))
        self.slower.append(sum(steps) - len(steps) * self.undisturbed)


def measure(state: Any, step: Callable[[], None], folder: Path, rounds: int) -> None:
    from megatron_mathcpt.train.loop import save

    step()
    undisturbed = statistics.median(seconds_of(step) for _ in range(9))
    save(state, beside=False)
    shard = next(checkpoint_paths(state.run_folder)[0].glob("*.distcp")).read_bytes()
    beside = Beside(state, step, undisturbed)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in {
            "raw write + fsync": lambda: write_raw(folder / "raw", shard),
            "save": lambda: save(state, beside=False),
            "save beside, until committed": beside,
            "torch's checkpoint": lambda: write_stock(folder / "stock", state),
        }.items():
            state.saver.finish()  # removes what need not stay, in training beside the steps
            os.sync()
            seconds.setdefault(name, []).append(seconds_of(work))
            state.step += 1
        shutil.rmtree(folder / "stock")
    report(seconds, len(shard), beside)


def report(seconds: dict[str, list[float]], size: int, beside: Beside) -> None:
    raw, blocking = (statistics.median(seconds[name]) for name in ("raw write + fsync", "save"))
    print(f"{size / 1e6:.0f} MB, medians of {len(seconds['save'])}; a step takes {beside.undisturbed:.3f} s")
    print(f"{'':30s}{'seconds':>9s}{'GB/s':>8s}{'of raw':>8s}   range of seconds")
    for name, times in seconds.items():
        middle = statistics.median(times)
        ends = f"{min(times):.3f} to {max(times):.3f}"
        print(f"{name:30s}{middle:9.3f}{size / middle / 1e9:8.2f}{raw / middle:8.2f}   {ends}")
    calls, slower = (statistics.median(times[1:]) for times in (beside.calls, beside.slower))
    print(f"\nheld by the calls:   {calls:.3f} s, {100 * calls / blocking:.1f} % of a save")
    print(f"by slower steps too: {calls + slower:.3f} s, {100 * (calls + slower) / blocking:.1f} % of a save")
    print(f"first save beside:   {beside.calls[0]:.3f} s by the calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    use_cpu()
    from megatron_mathcpt import parallel
    from megatron_mathcpt.train.components import build
    from megatron_mathcpt.train.inputs import resolve_inputs
    from megatron_mathcpt.train.loop import take_step

    os.environ.update(local_world(0, 1, free_port()))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        corpus = write_corpus(folder / "corpus", 2_000_000)
        config = experiment(corpus, 64, WIDE | {"num_layers": arguments.layers})
        inputs = resolve_inputs(config)
        with parallel.joined(inputs.config.parallel, 1) as layout:
            state = build(inputs, layout, folder / "run")
            measure(state, lambda: take_step(state, 1e-4) and None, folder, arguments.rounds)


if __name__ == "__main__":
    main()
