"""Saving, saving while training, and resuming on this machine: seconds, memory, and the losses of no save.

    python tests/benchmarks/gpu_saves.py [--layers 12] [--rows bf16 fp8_delayed] [--out FILE]

Each row trains six steps three times on made-up tokens, deterministically: without a save; with a save after
the second and one written beside the steps after the third; and resumed from that one. The table says what a
save takes of time and of GPU and host memory above the training's own, and the largest difference of a loss.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from made_up_run import FP8_RECIPES, build, experiment

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.train.process import set_deterministic

GIB = 2**30
STEPS = 6
ON_GPU = torch.cuda.is_available()


def shape_of(layers: int, hidden: int) -> LlamaShape:
    return LlamaShape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=hidden * 8 // 3 // 64 * 64,
        num_attention_heads=hidden // 64,
        num_query_groups=max(1, hidden // 256),
        vocab_size=32_000,
    )


def gpu_peak() -> float:
    """GiB at the highest since the last call."""
    if not ON_GPU:
        return 0.0
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def host_peak() -> float:
    """GiB of host memory at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


class Trained:
    """A run that saves into `folder`, step by step."""

    def __init__(self, config: ExperimentConfig, layout: parallel.Layout, folder: Path) -> None:
        from megatron_mathcpt.checkpoint.save import Saver
        from megatron_mathcpt.formats.run_folder import Retention

        self.state = build(config, layout)
        self.state.saver = Saver(folder, layout, Retention(2), {}, {})

    def step(self) -> tuple[float, float]:
        """Loss and seconds of one step."""
        from megatron_mathcpt.train.step import train_step

        begin = time.perf_counter()
        result = train_step(self.state, self.state.consumed_samples, 1e-4)
        loss = (result.losses[0, 0] / result.losses[0, 1]).item()
        self.state.step += 1
        return loss, time.perf_counter() - begin

    def save(self, *, beside: bool) -> float:
        """Seconds until training may go on."""
        from megatron_mathcpt.formats.run_folder import CheckpointCounts
        from megatron_mathcpt.train.components import unwrap

        counts = CheckpointCounts(step=self.state.step)
        begin = time.perf_counter()
        self.state.saver.save(unwrap(self.state.model), self.state.optimizer, counts, beside=beside)
        return time.perf_counter() - begin

    def load(self, path: Path) -> float:
        """Seconds to load weights and optimizer."""
        from megatron_mathcpt.checkpoint.load import load_state
        from megatron_mathcpt.train.components import unwrap

        begin = time.perf_counter()
        load_state(path, unwrap(self.state.model), self.state.optimizer, self.state.layout)
        return time.perf_counter() - begin


def disk_speed(folder: Path) -> float:
    """GB/s of writing and syncing 2 GB (a tenth of it on a CPU machine) there, by one thread."""
    block = os.urandom(2**26)
    count = 32 if ON_GPU else 3
    begin = time.perf_counter()
    with (folder / "block").open("wb") as file:
        for _ in range(count):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return count * len(block) / 1e9 / (time.perf_counter() - begin)


def measure(config: ExperimentConfig, row: str, layout: parallel.Layout, folder: Path) -> dict[str, Any]:
    """One row."""
    from megatron_mathcpt.formats.run_folder import checkpoint_path

    alone = Trained(config, layout, folder)
    expected = [alone.step() for _ in range(STEPS)]
    del alone
    run = Trained(config, layout, folder)
    losses = [run.step()[0] for _ in range(2)]
    training, host = gpu_peak(), host_peak()
    blocking = run.save(beside=False)
    saving, host_saving = gpu_peak(), host_peak()
    losses.append(run.step()[0])
    before_going_on = run.save(beside=True)
    beside = []
    for _ in range(STEPS - 3):
        loss, seconds = run.step()
        losses.append(loss)
        beside.append(seconds)
        run.state.saver.poll()
    saving_beside = gpu_peak()
    begin = time.perf_counter()
    run.state.saver.finish()
    rest = time.perf_counter() - begin
    path = checkpoint_path(folder, 3)
    size = sum(file.stat().st_size for file in path.iterdir())
    del run
    resumed = Trained(config, layout, folder)
    resumed.state.step = 3
    gpu_peak()
    loading = resumed.load(path)
    load_peak = gpu_peak()
    after = [resumed.step()[0] for _ in range(STEPS - 3)]
    plain = [loss for loss, _ in expected]
    return {
        "row": row,
        "checkpoint_gb": size / 1e9,
        "save_seconds": blocking,
        "save_gb_per_second": size / 1e9 / blocking,
        "async_seconds_before_the_next_step": before_going_on,
        "async_seconds_after_the_last_step": rest,
        "step_seconds": sorted(seconds for _, seconds in expected)[STEPS // 2],
        "step_seconds_beside_a_save": beside,
        "load_seconds": loading,
        "gpu_gib_training": training,
        "gpu_gib_in_save": saving,
        "gpu_gib_beside_save": saving_beside,
        "gpu_gib_in_load": load_peak,
        "host_gib_before": host,
        "host_gib_in_save": host_saving,
        "losses": plain,
        "largest_difference_with_saves": max(abs(a - b) for a, b in zip(losses, plain, strict=True)),
        "largest_difference_resumed": max(abs(a - b) for a, b in zip(after, plain[3:], strict=True)),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12 if ON_GPU else 2)
    parser.add_argument("--hidden", type=int, default=1536 if ON_GPU else 128)
    parser.add_argument("--rows", nargs="+", default=["bf16"], help="as in gpu_training.py")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    fixed = {"shape": "made-up", "tp": 1, "pp": 1, "cp": 1, "micro_batch_size": 1, "microbatches": 2}
    parser.set_defaults(**fixed, seq_length=2048 if ON_GPU else 64)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if not ON_GPU and any(row.split(",")[0] in FP8_RECIPES for row in arguments.rows):
        sys.exit("error: --rows: FP8 needs a GPU and Transformer Engine")
    use_cpu()
    set_deterministic(True)
    found = []
    for row in arguments.rows:
        folder = Path(tempfile.mkdtemp(prefix="saves_"))
        config = experiment(arguments, shape_of(arguments.layers, arguments.hidden), row, 1)
        layout = parallel.start_alone(config.parallel)
        found.append(measure(config, row, layout, folder))
        found[-1]["disk_gb_per_second"] = disk_speed(folder)
        parallel.stop()
        shutil.rmtree(folder)
        print(json.dumps(found[-1], indent=1), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1))
    for row in found:
        print(
            f"{row['row']}: {row['save_gb_per_second']:.2f} GB/s (disk {row['disk_gb_per_second']:.2f}), "
            f"losses differ by "
            f"{row['largest_difference_with_saves']:.1e} with saves, "
            f"{row['largest_difference_resumed']:.1e} resumed"
        )


if __name__ == "__main__":
    main()
