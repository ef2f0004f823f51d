"""Tokens/s, TFLOP/s, MFU and memory of the project's own training step on this machine, against the planner.

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

import faulthandler
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import made_up_run
import torch
from made_up_run import FP8_RECIPES, ON_GPU, TRANSFORMER_ENGINE, device_cost
from measuring import fresh, kill_processes

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.memory import GIB, check_memory, memory_per_stage
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import ModelShape, load_shape, model_shape
from megatron_mathcpt.planner.step_time import speed, step_time
from tests.support.llama_shapes import tiny_shape

TINY = tiny_shape(num_layers=4, hidden_size=256, ffn_hidden_size=704, vocab_size=1024, init_method_std=0.02)
DEVICE = "cuda" if ON_GPU else "cpu"
CARDS = ("h100", "h200", "a100", "b200")  # that the planner knows


say = partial(print, file=sys.stderr, flush=True)


def seconds_of(work: Callable[[], object]) -> float:
    """Median seconds of ten runs, after two to warm up."""
    return statistics.median([device_cost(work).wall for _ in range(12)][2:])


def gib(kind: str) -> float | None:
    return getattr(torch.cuda, kind)() / GIB if ON_GPU else None


def products(tokens: int, inputs: int, outputs: int) -> dict[str, Callable[[], object]]:
    """A matrix product of this size in bf16 and, on a GPU, in FP8."""
    left, right = (torch.randn(n, inputs, device=DEVICE, dtype=torch.bfloat16) for n in (tokens, outputs))
    found: dict[str, Callable[[], object]] = {"bf16": lambda: left @ right.t()}
    if ON_GPU and torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device=DEVICE)
        a8, b8 = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)
        found["FP8"] = lambda: torch._scaled_mm(
            a8, b8.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return found


def ceilings(shape: ModelShape, tokens: int) -> dict[str, float]:
    """TFLOP/s of each of a layer's matrices at `tokens`, and GB/s of a copy."""
    matrices = {
        "qkv": (shape.hidden_size, shape.query_width + 2 * shape.key_width),
        "proj": (shape.query_width, shape.hidden_size),
        "fc1": (shape.hidden_size, shape.fc1_width),
        "fc2": (shape.ffn_hidden_size, shape.hidden_size),
    }
    found = {
        f"{name} {kind} TFLOP/s": 2e-12 * tokens * inputs * outputs / seconds_of(product)
        for name, (inputs, outputs) in matrices.items()
        for kind, product in products(tokens, inputs, outputs).items()
    }
    source = torch.empty(2**30 if ON_GPU else 2**24, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found["copy GB/s"] = 2e-9 * source.numel() / seconds_of(lambda: target.copy_(source))
    return found


def run(config: ExperimentConfig, layout: Any, row: str, arguments: Namespace) -> dict[str, Any]:
    """Train a few steps; medians and peak, against what the planner predicts."""
    assert config.model is not None
    if ON_GPU and not arguments.force:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        check_memory(config, torch.distributed.get_world_size(), memory_gib=total, fused=TRANSFORMER_ENGINE)
    built = device_cost(lambda: made_up_run.build(config, layout))
    state = built.result
    built_gib = gib("memory_allocated") or 0.0
    say(f"{row} built in {built.wall:.1f} s, {built_gib:.1f} GiB")
    updates = timed(state.optimizer, "step_with_ready_grads")
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for step in range(arguments.steps):
        taken = device_cost(lambda: made_up_run.take_step(state))
        loss, tokens = taken.result.losses[0]
        seconds.append(taken.wall)
        losses.append((loss / tokens).item())
        say(f"{row} step {step + 1}: {taken.wall:.3f} s, loss {losses[-1]:.4f}")
    warm = min(3, len(seconds) - 1)
    found = {
        "row": row,
        "layers": config.model.num_layers,
        "seconds": statistics.median(seconds[warm:]),
        "optimizer_seconds": statistics.median(updates[warm:]),
        "all_seconds": seconds,
        "peak_gib": gib("max_memory_allocated"),
        "gib_between_steps": gib("memory_allocated"),
        "losses": losses,
        "kernels": profile(lambda: made_up_run.take_step(state)) if arguments.profile else None,
    }
    return found | predict(config, layout, found["seconds"], found["optimizer_seconds"])


def timed(owner: Any, name: str) -> list[float]:
    """Seconds of each later call of a method."""
    method, seconds = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        found = device_cost(lambda: method(*args, **kwargs))
        seconds.append(found.wall)
        return found.result

    setattr(owner, name, call)
    return seconds


def predict(config: ExperimentConfig, layout: Any, seconds: float, optimizer: float) -> dict[str, Any]:
    planned = PlannedRun(config, torch.distributed.get_world_size(), fused=TRANSFORMER_ENGINE)
    name = torch.cuda.get_device_name().lower() if ON_GPU else ""
    card = next((known for known in CARDS if known in name), None)
    machine = load_machine(card or "h100")
    measured = speed(planned, machine.hardware, seconds)
    found = {
        "tokens_per_second_per_gpu": measured.tokens_per_second_per_gpu,
        "tflops_causal": measured.tflops_causal,
        "tflops_full": measured.tflops_full,
        "predicted_gib": memory_per_stage(planned)[layout.groups.pp.rank()].gib,
    }
    if card:
        found["mfu"] = measured.mfu
        found["mfu_without_optimizer"] = measured.mfu * seconds / (seconds - optimizer)
        found["predicted_seconds"] = step_time(planned, machine).total
    return found


def profile(step: Callable[[], object]) -> list[tuple[str, float]]:
    """Milliseconds of one step: wall and device, then kernels, then calls by inputs, longest first."""
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if ON_GPU else [kinds.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        wall = device_cost(step).wall
    field = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    events = sorted(
        profiler.key_averages(group_by_input_shape=True), key=lambda event: -getattr(event, field)
    )
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    calls = [event for event in events if event.device_type.name == "CPU"]  # which tensors a kernel was for
    busy = sum(getattr(event, field) for event in kernels or calls)
    count = sum(event.count for event in kernels or calls)
    return [("wall, while profiled", 1e3 * wall), (f"in {count} kernels or calls", busy / 1e3)] + [
        (f"{event.count} x {event.key[:80]} {event.input_shapes or ''}", getattr(event, field) / 1e3)
        for event in kernels[:40] + calls[:24]
    ]


def environment() -> dict[str, Any]:
    """Card, clocks, versions, date."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("megatron-core", "transformer-engine"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    card, clocks = "CPU", ""
    if ON_GPU:  # asked of nvidia-smi: a CUDA context in this process would take memory from the rows
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        clocks = subprocess.check_output(["nvidia-smi", query, "--format=csv"], text=True)
        card = clocks.splitlines()[1].split(",")[0]
    return {"card": card, "clocks": clocks, "versions": versions, "date": datetime.now(UTC).isoformat()}


HEADER = (
    "row                    step s (optimizer)  tokens/s/GPU  TFLOP/s causal  MFU, without optimizer  "
    "peak GiB  predicted s / GiB (error)"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    mfu, peak, predicted = "–", "–", f"– / {row['predicted_gib']:.2f}"
    if row["peak_gib"]:
        peak = f"{row['peak_gib']:.1f}"
    if "mfu" in row:
        mfu = f"{100 * row['mfu']:.1f}, {100 * row['mfu_without_optimizer']:.1f} %"
        time_error = row["predicted_seconds"] / row["seconds"] - 1
        memory_error = row["predicted_gib"] / row["peak_gib"] - 1
        predicted = f"{row['predicted_seconds']:.2f} / {row['predicted_gib']:.1f} "
        predicted += f"({100 * time_error:+.1f} % / {100 * memory_error:+.1f} %)"
    return (
        f"{row['row']:22} {row['seconds']:7.3f} ({row['optimizer_seconds']:.3f}) "
        f"{row['tokens_per_second_per_gpu']:15,.0f} {row['tflops_causal']:13.2f}  {mfu:>15} "
        f"{peak:>17}  {predicted}"
    )


def compare(rows: list[dict[str, Any]]) -> str:
    """Every row against the first: speed with and without the optimizer's update, and the last loss."""
    work = [row["seconds"] - row["optimizer_seconds"] for row in rows]
    return "\n".join(
        f"{row['row']} / {rows[0]['row']}: speed {rows[0]['seconds'] / row['seconds']:.3f}x, "
        f"without optimizer {work[0] / own:.3f}x, loss after {len(row['losses'])} steps "
        f"{100 * (row['losses'][-1] / rows[0]['losses'][-1] - 1):+.3f} %"
        for row, own in zip(rows[1:], work[1:], strict=True)
    )


def parse() -> Namespace:
    """The options; ends the program on a row that this machine cannot run."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    default = "llama3-8b" if ON_GPU else "tiny"
    parser.add_argument("--shape", default=default, help="tiny, a built-in shape, or a config.json")
    parser.add_argument("--layers", type=int, default=12 if ON_GPU else None, help="another depth")
    sizes = {"seq-length": (8192, 256), "micro-batch-size": (1, 1), "microbatches": (4, 2), "steps": (8, 4)}
    for name, (on_gpu, on_cpu) in (sizes | dict.fromkeys(("tp", "pp", "cp"), (1, 1))).items():
        parser.add_argument(f"--{name}", type=int, default=on_gpu if ON_GPU else on_cpu)
    rows = ["bf16", *FP8_RECIPES] if TRANSFORMER_ENGINE else ["fp32", "bf16"]
    parser.add_argument("--rows", nargs="+", default=rows, help="precision and changes: bf16,documents")
    parser.add_argument("--profile", action="store_true", help="kernel times of one step more, of every row")
    parser.add_argument("--row-seconds", type=float, help="stop a row after so long, and continue")
    parser.add_argument("--force", action="store_true", help="run what the planner says cannot fit")
    parser.add_argument("--no-ceilings", action="store_true", help="leave the card's ceilings out")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    arguments = parser.parse_args()
    made_up_run.check_rows(arguments.rows)
    return arguments


def measure(arguments: Namespace, row: str | None) -> dict[str, Any]:
    """One row, or the ceilings, in this process."""
    use_cpu()
    if arguments.row_seconds:  # a row that will be stopped shows where it was
        faulthandler.dump_traceback_later(max(arguments.row_seconds - 5, 1), exit=False)
    shape = model_shape("tiny", TINY) if arguments.shape == "tiny" else load_shape(arguments.shape)
    if arguments.layers:
        shape = shape.model_copy(update={"num_layers": arguments.layers})
    if row is None:
        return ceilings(shape, arguments.micro_batch_size * arguments.seq_length)
    replicas = int(os.environ.get("WORLD_SIZE", "1")) // (arguments.tp * arguments.pp * arguments.cp)
    config = made_up_run.experiment(arguments, shape, row, replicas)
    joined = "RANK" in os.environ
    layout = parallel.start(config.parallel, 1) if joined else parallel.start_alone(config.parallel)
    try:
        return run(config, layout, row, arguments)
    except torch.cuda.OutOfMemoryError:
        if "small" in row:
            raise
        return {"row": row, "error": f"out of memory at {gib('max_memory_allocated'):.1f} GiB"}
    except ConfigError as error:
        return {"row": row, "error": str(error)}
    finally:
        parallel.stop()


def in_process(arguments: Namespace, row: str | None) -> dict[str, Any]:
    """`measure` in a process of its own, so that no row inherits memory, plans or generators."""
    if "RANK" in os.environ:
        return measure(arguments, row)
    with fresh() as process:
        working = process.submit(measure, arguments, row)
        try:
            return working.result(arguments.row_seconds)
        except TimeoutError:
            kill_processes()
            return {"row": row, "error": f"not done after {arguments.row_seconds:g} s"}


def main() -> None:
    arguments = parse()
    writes = os.environ.get("RANK", "0") == "0"
    found: dict[str, Any] = environment() | {"arguments": vars(arguments) | {"out": str(arguments.out)}}
    found |= {"ceilings": {} if arguments.no_ceilings else in_process(arguments, None), "rows": []}
    if writes:
        print(f"{found['card']}, {found['versions']}, {found['date']}\n{found['clocks']}")
        print("  ".join(f"{name} {value:.1f}" for name, value in found["ceilings"].items()))
        print(HEADER, flush=True)
    for row in arguments.rows:
        result = in_process(arguments, row)
        if "out of memory" in result.get("error", ""):
            print(f"{row:22} {result['error']}; again with small", flush=True)
            result = in_process(arguments, f"{row},small")
        if not writes:
            continue
        print(f"{row:22} no figures: {result['error']}" if "error" in result else line(result), flush=True)
        for name, milliseconds in result.get("kernels") or []:
            print(f"  {milliseconds:9.2f} ms  {name[:120]}")
        found["rows"].append(result)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1))
    print(compare([row for row in found["rows"] if "error" not in row]))


if __name__ == "__main__":
    main()
