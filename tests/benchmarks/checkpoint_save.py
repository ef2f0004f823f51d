"""Saves and loads of two replicas with the sharded optimizer: bytes and memory of a rank, and the speed.

    python tests/benchmarks/checkpoint_save.py [--rounds 5] [--layers 24] [--folder DIR]

Each rank writes its share of a bf16 model (317 M parameters in 24 layers). The ways take turns, one of each
a round, after a sync of the whole disk: the raw write and fsync is each rank's of as many bytes, at the same
time; wall seconds of the slower rank count, since a disk is waited for, so let nothing else run. `held` is
how long the training loop stands still: the calls of the save, and what the steps that ran beside the writing
took longer than others. Memory is the peak of a rank's resident set above what it held before, beside the
steps above the peak of a step.

Bars: bytes of a rank within 10 % of half; memory of a save and of a load <= 1.3 x the rank's share + 0.3 GB;
save >= 0.75 of raw bandwidth; beside held <= 10 % of a save.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from training_step import experiment, write_corpus

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.formats.run_folder import checkpoint_paths, load_sealed
from megatron_mathcpt.train.process import free_port, local_world

WIDE = {"hidden_size": 1024, "ffn_hidden_size": 2816, "num_attention_heads": 16}
REPLICAS, LENGTH = 2, 64
PAGE = os.sysconf("SC_PAGE_SIZE")


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def write_raw(path: Path, size: int) -> None:
    block = memoryview(os.urandom(1 << 24))
    with path.open("wb") as file:
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
        file.flush()
        os.fsync(file.fileno())
    dist.barrier()


def peak_above(work: Callable[[], object]) -> int:
    """Bytes of resident memory that `work` takes above what is held before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    held = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    work()
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 - held


def of_all_ranks(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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
    from megatron_mathcpt.checkpoint.load import load_state
    from megatron_mathcpt.train.components import unwrap
    from megatron_mathcpt.train.loop import save

    step()
    undisturbed = statistics.median(seconds_of(step) for _ in range(5))
    saved = peak_above(lambda: save(state, beside=False))
    state.saver.finish()
    path = checkpoint_paths(state.run_folder)[0]
    loaded = peak_above(lambda: load_state(path, unwrap(state.model), state.optimizer, state.layout))
    shares = bytes_of_ranks(path)
    beside = Beside(state, step, undisturbed)
    first = peak_above(beside) - peak_above(step)
    peaks = [of_all_ranks(peak) for peak in (saved, loaded, first)]
    if state.layout.is_writer:
        report_shares(shares, dict(zip(("save", "load", "save beside"), peaks, strict=True)))
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in {
            "raw write + fsync": lambda: write_raw(folder / f"raw{dist.get_rank()}", max(shares)),
            "save": lambda: save(state, beside=False),
            "save beside, until committed": beside,
        }.items():
            state.step += 1
            state.saver.finish()  # removes what need not stay, in training beside the steps
            os.sync()
            dist.barrier()
            seconds.setdefault(name, []).append(max(of_all_ranks(seconds_of(work))))
    if state.layout.is_writer:
        report(seconds, sum(shares), beside)


def bytes_of_ranks(path: Path) -> list[int]:
    """Bytes of each rank's files; the index and the like are nobody's."""
    files = load_sealed(path).outputs
    return [
        sum(file.bytes for name, file in files.items() if f"__{rank}_" in name) for rank in range(REPLICAS)
    ]


def report_shares(shares: list[int], peaks: dict[str, list[int]]) -> None:
    half = sum(shares) / REPLICAS
    parts = ", ".join(f"{share / 1e6:.0f} MB ({share / half:.3f} of half)" for share in shares)
    print(f"bytes of each rank: {parts}")
    print(f"{'':12s}{'memory of each rank':>24s}   bar: {(1.3 * max(shares) + 3e8) / 1e9:.2f} GB")
    for name, values in peaks.items():
        shown = ", ".join(f"{value / 1e9:.2f} GB" for value in values)
        print(f"{name:12s}{shown:>24s}   {max(values) / max(shares):.2f} of the share")


def report(seconds: dict[str, list[float]], size: int, beside: Beside) -> None:
    raw, blocking = (statistics.median(seconds[name]) for name in ("raw write + fsync", "save"))
    print(
        f"\n{size / 1e6:.0f} MB, medians of {len(seconds['save'])}; a step takes {beside.undisturbed:.3f} s"
    )
    print(f"{'':30s}{'seconds':>9s}{'GB/s':>8s}{'of raw':>8s}   range of seconds")
    for name, times in seconds.items():
        middle = statistics.median(times)
        ends = f"{min(times):.3f} to {max(times):.3f}"
        print(f"{name:30s}{middle:9.3f}{size / middle / 1e9:8.2f}{raw / middle:8.2f}   {ends}")
    calls, slower = (statistics.median(times[1:]) for times in (beside.calls, beside.slower))
    print(f"\nheld by the calls:   {calls:.3f} s, {100 * calls / blocking:.1f} % of a save")
    print(f"by slower steps too: {calls + slower:.3f} s, {100 * (calls + slower) / blocking:.1f} % of a save")
    print(f"first save beside:   {beside.calls[0]:.3f} s by the calls")


def two_replicas(corpus: Path, layers: int) -> ExperimentConfig:
    tree = experiment(corpus, LENGTH, WIDE | {"num_layers": layers}).model_dump(mode="json")
    tree["parallel"]["use_distributed_optimizer"] = True
    tree["precision"]["params_dtype"] = "bf16"
    tree["train"] |= {"micro_batch_size": 1, "global_batch_size": REPLICAS}
    tree["checkpoint"]["keep"] = 1
    return ExperimentConfig.model_validate_json(json.dumps(tree))


def run_replica(folder: Path, layers: int, rounds: int) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    use_cpu()
    from megatron_mathcpt import parallel
    from megatron_mathcpt.train.components import build
    from megatron_mathcpt.train.inputs import resolve_inputs
    from megatron_mathcpt.train.loop import take_step

    inputs = resolve_inputs(two_replicas(folder / "corpus", layers))
    with parallel.joined(inputs.config.parallel, 1) as layout:
        state = build(inputs, layout, folder / "run")
        measure(state, lambda: take_step(state, 1e-4) and None, folder, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder's")
    parser.add_argument("--replica", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replica is not None:
        run_replica(arguments.replica, arguments.layers, arguments.rounds)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_corpus(Path(name) / "corpus", 200_000)
        port = free_port()
        command = [sys.executable, *sys.argv, "--replica", name]
        workers = [
            subprocess.Popen(command, env=os.environ | local_world(rank, REPLICAS, port))
            for rank in range(REPLICAS)
        ]
        sys.exit(max(abs(worker.wait()) for worker in workers))


if __name__ == "__main__":
    main()
