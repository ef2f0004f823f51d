"""Tokens/s, TFLOP/s, MFU and memory of the project's own training step on this machine, beside the planner.

    python tests/benchmarks/gpu_training.py           12 layers of Llama-3-8B, bf16 and the FP8 recipes
    python tests/benchmarks/gpu_training.py --rows bf16 bf16,documents bf16,unfused --profile
    python tests/benchmarks/gpu_training.py --shape tiny               anywhere: the CPU path
    torchrun --nproc-per-node 8 tests/benchmarks/gpu_training.py --tp 2 --rows bf16

A row is a precision and what differs from the default: `documents` attends within documents of 512 tokens,
`unfused` leaves out the fused loss and the fused weight gradient, `small` keeps AdamW's moments in bf16. Each
row runs in a process of its own, is printed as it comes and kept in `--out FILE` (JSON, with card, versions,
clocks and date). First the card's own ceilings: matrix products of the model's shapes, and a copy. Weights
are random, data made up, the same for every row. TFLOP/s and MFU count causal attention, MFU against the
dense bf16 peak, of the whole step and of the step without the optimizer, which on one GPU updates what a
cluster's replicas share. A row that the planner says cannot fit is refused; one that runs out all the same
is taken again with `small`.
"""

import argparse
import faulthandler
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from made_up_run import CHANGES, FP8_RECIPES, TINY, build, experiment

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import from_experiment
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.memory import GIB, check_memory, memory_per_stage
from megatron_mathcpt.planner.shapes import ModelShape, from_llama, load_shape
from megatron_mathcpt.planner.step_time import speed, step_time

ON_GPU = torch.cuda.is_available()
TRANSFORMER_ENGINE = ON_GPU and find_spec("transformer_engine") is not None
DEVICE = "cuda" if ON_GPU else "cpu"


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], repeats: int = 10) -> float:
    """Median seconds of `work`, after two runs to warm up."""
    times = []
    for run in range(repeats + 2):
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        if run >= 2:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def ceilings(shape: ModelShape, tokens: int) -> dict[str, float]:
    """TFLOP/s of each of a layer's matrices at `tokens`, bf16 and (on a GPU) FP8, and GB/s of a copy."""
    matrices = {
        "qkv": (shape.hidden_size, shape.query_width + 2 * shape.key_width),
        "proj": (shape.query_width, shape.hidden_size),
        "fc1": (shape.hidden_size, shape.fc1_width),
        "fc2": (shape.ffn_hidden_size, shape.hidden_size),
    }
    found = {}
    for name, (inputs, outputs) in matrices.items():
        left = torch.randn(tokens, inputs, device=DEVICE, dtype=torch.bfloat16)
        right = torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16)
        operations = 2e-12 * tokens * inputs * outputs
        found[f"{name} bf16 TFLOP/s"] = operations / seconds_of(lambda a=left, b=right: a @ b.t())
        if ON_GPU and torch.cuda.get_device_capability() >= (8, 9):
            one = torch.ones((), device=DEVICE)
            a8, b8 = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)
            found[f"{name} FP8 TFLOP/s"] = operations / seconds_of(
                lambda a=a8, b=b8, s=one: torch._scaled_mm(
                    a, b.t(), s, s, out_dtype=torch.bfloat16, use_fast_accum=True
                )
            )
    source = torch.empty(2**30 if ON_GPU else 2**24, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found["copy GB/s"] = 2e-9 * source.numel() / seconds_of(lambda: target.copy_(source))
    return found


def run(
    config: ExperimentConfig, layout: parallel.Layout, row: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train a few steps; medians and peak, beside what the planner predicts."""
    from megatron_mathcpt.train.step import train_step

    assert config.model is not None
    if ON_GPU and not arguments.force:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        check_memory(config, torch.distributed.get_world_size(), memory_gib=total, fused=TRANSFORMER_ENGINE)
    begin = time.perf_counter()
    state = build(config, layout)
    synchronize()
    taken = torch.cuda.memory_allocated() / GIB if ON_GPU else 0.0
    print(f"{row} built in {time.perf_counter() - begin:.1f} s, {taken:.1f} GiB", file=sys.stderr, flush=True)
    updates = timed(state.optimizer, "step_with_ready_grads")
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for step in range(arguments.steps):
        synchronize()
        begin = time.perf_counter()
        result = train_step(state, state.consumed_samples, 1e-4)
        synchronize()
        seconds.append(time.perf_counter() - begin)
        losses.append((result.losses[0, 0] / result.losses[0, 1]).item())
        state.step = step + 1
        print(
            f"{row} step {step + 1}: {seconds[-1]:.3f} s, loss {losses[-1]:.4f}", file=sys.stderr, flush=True
        )
    warm = min(3, len(seconds) - 1)
    found = {
        "row": row,
        "layers": config.model.num_layers,
        "seconds": statistics.median(seconds[warm:]),
        "optimizer_seconds": statistics.median(updates[warm:]),
        "all_seconds": seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if ON_GPU else None,
        "gib_between_steps": torch.cuda.memory_allocated() / GIB if ON_GPU else None,
        "losses": losses,
        "kernels": profile(state) if arguments.profile else None,
    }
    return found | predict(config, layout, found["seconds"], found["optimizer_seconds"])


def timed(owner: Any, name: str) -> list[float]:
    """Seconds of each later call of a method, the device's work finished before and after."""
    method, seconds = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        begin = time.perf_counter()
        found = method(*args, **kwargs)
        synchronize()
        seconds.append(time.perf_counter() - begin)
        return found

    setattr(owner, name, call)
    return seconds


def predict(
    config: ExperimentConfig, layout: parallel.Layout, seconds: float, optimizer: float
) -> dict[str, Any]:
    """Tokens/s and TFLOP/s of `seconds`, and the planner's figures for this card if it is known."""
    assert config.model is not None
    shape = from_llama(config.name, config.model)
    world = torch.distributed.get_world_size()
    training, cut = from_experiment(config, world, fused=TRANSFORMER_ENGINE)
    card = card_name()
    machine = load_machine(card or "h100")
    measured = speed(shape, training, machine.hardware, seconds=seconds, gpus=world)
    found = {
        "tokens_per_second_per_gpu": measured.tokens_per_second_per_gpu,
        "tflops_causal": measured.tflops_causal,
        "tflops_full": measured.tflops_full,
        "predicted_gib": memory_per_stage(shape, training, cut)[layout.groups.pp.rank()].gib,
    }
    if card:
        found["mfu"] = measured.mfu
        found["mfu_without_optimizer"] = measured.mfu * seconds / (seconds - optimizer)
        found["predicted_seconds"] = step_time(shape, training, cut, machine).total
    return found


def card_name() -> str:
    """The planner's name of this GPU, empty if it knows none."""
    name = torch.cuda.get_device_name().lower() if ON_GPU else ""
    return next((known for known in ("h100", "h200", "a100", "b200") if known in name), "")


def profile(state: Any) -> list[tuple[str, float]]:
    """Kernels, then calls by the shapes of their inputs, with most time in one step, in milliseconds."""
    from megatron_mathcpt.train.step import train_step

    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if ON_GPU else [kinds.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        train_step(state, state.consumed_samples, 1e-4)
        synchronize()
    field = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    events = profiler.key_averages(group_by_input_shape=True)
    kernels = [event for event in events if not event.input_shapes]
    calls = [event for event in events if event.input_shapes]  # tells which tensors a kernel worked on
    return [
        (f"{event.key[:80]} {event.input_shapes or ''}", getattr(event, field) / 1e3)
        for found in (kernels, calls)
        for event in sorted(found, key=lambda event: -getattr(event, field))[:24]
    ]


def environment() -> dict[str, Any]:
    """Card, clocks, versions, date."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("megatron-core", "transformer-engine"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    card, clocks = "CPU", ""
    if ON_GPU:  # asked of nvidia-smi: a CUDA context in this process would take memory from the rows
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        command = ["nvidia-smi", query, "--format=csv"]
        clocks = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        card = clocks.splitlines()[1].split(",")[0]
    return {"card": card, "clocks": clocks, "versions": versions, "date": datetime.now(UTC).isoformat()}


HEADER = (
    "row                    step s (optimizer)  tokens/s/GPU  TFLOP/s causal  MFU, without optimizer  "
    "peak GiB  predicted s / GiB (error)"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    mfu = "–"
    if "mfu" in row:
        mfu = f"{100 * row['mfu']:.1f}, {100 * row['mfu_without_optimizer']:.1f} %"
    peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] else "–"
    predicted = f"– / {row['predicted_gib']:.2f}"
    if "predicted_seconds" in row:
        time_error = row["predicted_seconds"] / row["seconds"] - 1
        memory_error = row["predicted_gib"] / row["peak_gib"] - 1
        predicted = f"{row['predicted_seconds']:.2f} / {row['predicted_gib']:.1f} "
        predicted += f"({100 * time_error:+.1f} % / {100 * memory_error:+.1f} %)"
    return (
        f"{row['row']:22} {row['seconds']:7.3f} ({row['optimizer_seconds']:.3f}) "
        f"{row['tokens_per_second_per_gpu']:15,.0f} {row['tflops_causal']:13.2f}  {mfu:>15} "
        f"{peak:>17}  {predicted}"
    )


def compare(rows: list[dict[str, Any]]) -> list[str]:
    """Every row against the first: speed with and without the optimizer's update, and the last loss."""
    if not rows:
        return []
    base = rows[0]
    work = base["seconds"] - base["optimizer_seconds"]
    return [
        f"{row['row']} / {base['row']}: speed {base['seconds'] / row['seconds']:.3f}x, without optimizer "
        f"{work / (row['seconds'] - row['optimizer_seconds']):.3f}x, loss after {len(row['losses'])} steps "
        f"{100 * (row['losses'][-1] / base['losses'][-1] - 1):+.3f} %"
        for row in rows[1:]
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "llama3-8b" if ON_GPU else "tiny"
    parser.add_argument("--shape", default=default, help="tiny, a built-in shape, or a config.json")
    parser.add_argument("--layers", type=int, default=12 if ON_GPU else None, help="another depth")
    parser.add_argument("--seq-length", type=int, default=8192 if ON_GPU else 256)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=4 if ON_GPU else 2)
    parser.add_argument("--steps", type=int, default=8 if ON_GPU else 4)
    parser.add_argument("--rows", nargs="+", help="precision and changes, for example bf16,documents")
    for size in ("tp", "pp", "cp"):
        parser.add_argument(f"--{size}", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="kernel times of one step more, first row")
    parser.add_argument("--row-seconds", type=float, help="give a row up after so long, and go on")
    parser.add_argument("--force", action="store_true", help="run what the planner says cannot fit")
    parser.add_argument("--no-ceilings", action="store_true", help="leave the card's ceilings out")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    return parser.parse_args()


def chosen_rows(arguments: argparse.Namespace) -> list[str]:
    """The rows asked for, or those that this machine can run; ends the program on one that it cannot."""
    fp8 = TRANSFORMER_ENGINE
    rows = arguments.rows or (["bf16", *FP8_RECIPES] if fp8 else ["fp32", "bf16"])
    for row in rows:
        precision, *changes = row.split(",")
        if precision not in ("fp32", "bf16", *FP8_RECIPES) or not set(changes) <= set(CHANGES):
            sys.exit(f"error: --rows {row}: not one of fp32, bf16, {', '.join(FP8_RECIPES)} with {CHANGES}")
        if precision in FP8_RECIPES and not fp8:
            sys.exit(f"error: --rows {row}: needs a GPU and Transformer Engine; the local layers ignore FP8")
    return list(rows)


def llama_of(arguments: argparse.Namespace) -> LlamaShape:
    if arguments.shape == "tiny":
        llama = TINY
    else:
        shape = load_shape(arguments.shape)
        fields = {name: value for name, value in vars(shape).items() if name in LlamaShape.model_fields}
        llama = LlamaShape(**fields)
    return llama.model_copy(update={"num_layers": arguments.layers}) if arguments.layers else llama


def measure(arguments: argparse.Namespace, row: str | None) -> dict[str, Any]:
    """One row, or the ceilings, in this process."""
    use_cpu()
    if arguments.row_seconds:  # a row that will be given up tells where it was
        faulthandler.dump_traceback_later(max(arguments.row_seconds - 5, 1), exit=False)
    llama = llama_of(arguments)
    if row is None:
        return ceilings(from_llama(arguments.shape, llama), arguments.micro_batch_size * arguments.seq_length)
    replicas = int(os.environ.get("WORLD_SIZE", "1")) // (arguments.tp * arguments.pp * arguments.cp)
    config = experiment(arguments, llama, row, replicas)
    joined = "RANK" in os.environ
    layout = parallel.start(config.parallel, 1) if joined else parallel.start_alone(config.parallel)
    try:
        return run(config, layout, row, arguments)
    except torch.cuda.OutOfMemoryError:
        if "small" in row:
            raise
        taken = torch.cuda.max_memory_allocated() / GIB
        return {"row": row, "error": f"out of memory at {taken:.1f} GiB"}
    except ConfigError as error:
        return {"row": row, "error": str(error)}
    finally:
        parallel.stop()


def in_process(arguments: argparse.Namespace, row: str | None) -> dict[str, Any]:
    """`measure` in a process of its own, so that no row inherits memory, plans or generators."""
    if "RANK" in os.environ:
        return measure(arguments, row)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        working = process.submit(measure, arguments, row)
        try:
            return working.result(arguments.row_seconds)
        except TimeoutError:
            for child in multiprocessing.active_children():
                child.kill()
            return {"row": row, "error": f"not done after {arguments.row_seconds:g} s"}


def main() -> None:
    arguments = parse()
    rows = chosen_rows(arguments)
    writes = os.environ.get("RANK", "0") == "0"
    found: dict[str, Any] = environment() | {"arguments": vars(arguments) | {"out": str(arguments.out)}}
    found |= {"ceilings": {} if arguments.no_ceilings else in_process(arguments, None), "rows": []}
    if writes:
        print(f"{found['card']}, {found['versions']}, {found['date']}\n{found['clocks']}")
        print("  ".join(f"{name} {value:.1f}" for name, value in found["ceilings"].items()))
        print(HEADER, flush=True)
    for row in rows:
        result = in_process(arguments, row)
        if "out of memory" in result.get("error", ""):
            print(f"{row:22} {result['error']}; again with small", flush=True)
            result = in_process(arguments, f"{row},small")
        arguments.profile = False
        if not writes:
            continue
        print(f"{row:22} no figures: {result['error']}" if "error" in result else line(result), flush=True)
        for name, milliseconds in result.get("kernels") or []:
            print(f"  {milliseconds:9.2f} ms  {name[:110]}")
        found["rows"].append(result)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1))
    whole = [row for row in found["rows"] if "error" not in row]
    print("\n".join(compare(whole)))


if __name__ == "__main__":
    main()
