"""Tokens/s, TFLOP/s, MFU and memory of the project's own training step on this machine, beside the planner.

    python tests/benchmarks/gpu_training.py                            Llama-2-7B, bf16 and both FP8 recipes
    python tests/benchmarks/gpu_training.py --loss-steps 30 --profile  loss of FP8 against bf16; kernel times
    python tests/benchmarks/gpu_training.py --shape tiny               anywhere: the CPU path
    torchrun --nproc-per-node 8 tests/benchmarks/gpu_training.py --tp 2

First the card's own ceilings: matrix products of the model's shapes, and a copy. Weights are random, data
made up, the same for every precision. TFLOP/s and MFU count causal attention, MFU against the dense bf16
peak. `--out FILE` keeps everything as JSON with card, versions, clocks and date.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.config.llama import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.planner.hardware import Hardware, hardware_names, load_hardware
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.memory import GIB, memory_per_stage
from megatron_mathcpt.planner.shapes import ModelShape, from_llama, load_shape
from megatron_mathcpt.planner.start import from_experiment
from megatron_mathcpt.planner.step_time import speed, step_time

TINY = LlamaShape(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=704,
    num_attention_heads=8,
    num_query_groups=4,
    vocab_size=1024,
)
FP8_RECIPES = {"fp8_delayed": "delayed", "fp8_current": "tensorwise"}
ON_GPU = torch.cuda.is_available()
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
                lambda a=a8, b=b8, s=one: torch._scaled_mm(a, b.t(), s, s, out_dtype=torch.bfloat16)
            )
    source = torch.empty(2**30 if ON_GPU else 2**24, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found["copy GB/s"] = 2e-9 * source.numel() / seconds_of(lambda: target.copy_(source))
    return found


class MadeUpTokens:
    """Arithmetic progressions over the vocabulary: learnable, and sample i is the same in every run."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self._vocabulary, self._length = vocabulary, length

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        start, stride = torch.randint(1, min(self._vocabulary, 1000), (2,), generator=generator).tolist()
        positions = torch.arange(self._length)
        tokens = (start + stride * torch.arange(self._length + 1)) % self._vocabulary
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(self._length),
            "position_ids": positions,
        }


def experiment(
    arguments: argparse.Namespace, shape: LlamaShape, precision: str, replicas: int
) -> ExperimentConfig:
    """The run's config."""
    batch = arguments.micro_batch_size * arguments.microbatches * replicas
    tree = {
        "name": f"{arguments.shape} {precision}",
        "seed": 1,
        "model": shape.model_dump(),
        "init": {"scratch": True},
        "data": {"corpus": "made-up", "blend": {"made-up": 1.0}},
        "optimizer": {"lr": 1e-4},
        "schedule": {"lr_decay_style": "constant"},
        "parallel": {
            "tensor_model_parallel_size": arguments.tp,
            "pipeline_model_parallel_size": arguments.pp,
            "context_parallel_size": arguments.cp,
            "sequence_parallel": arguments.tp > 1,
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": replicas * arguments.cp > 1,
            "overlap_param_gather": replicas * arguments.cp > 1,
        },
        "precision": {"params_dtype": "fp32" if precision == "fp32" else "bf16"}
        | ({"fp8": "hybrid", "fp8_recipe": FP8_RECIPES[precision]} if precision in FP8_RECIPES else {}),
        "train": {
            "train_tokens": 10**12,
            "seq_length": arguments.seq_length,
            "micro_batch_size": arguments.micro_batch_size,
            "global_batch_size": batch,
        },
        "checkpoint": {"interval": 10**6},
    }
    return ExperimentConfig.model_validate_json(json.dumps(tree))


def build(config: ExperimentConfig, layout: parallel.Layout) -> Any:
    """The training state of `config`, weights drawn on the device."""
    from megatron_mathcpt.checkpoint.folder import Retention
    from megatron_mathcpt.checkpoint.saver import Saver
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.train.components import TrainState, build_optimizer, wrap_model
    from megatron_mathcpt.train.faults import StepGuard
    from megatron_mathcpt.train.inputs import Inputs

    assert config.model is not None
    assert config.model.vocab_size is not None
    torch.manual_seed(1)
    model = build_model(config.model, layout, config.precision)
    for chunk in model:
        for name, weight in chunk.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.02)
            else:
                torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.zeros_(weight)
    model = wrap_model(model, config, layout)
    data = MadeUpTokens(config.model.vocab_size, config.train.seq_length)
    inputs = Inputs(config, {}, 0, None)
    guard = StepGuard(config.faults)
    saver = Saver(Path(), layout, Retention(1))
    optimizer = build_optimizer(model, config)
    return TrainState(inputs, layout, Path(), model, optimizer, data, {}, guard, saver)


def run(
    arguments: argparse.Namespace, llama: LlamaShape, layout: parallel.Layout, precision: str
) -> dict[str, Any]:
    """Train a few steps; medians and peak, beside what the planner predicts."""
    from megatron_mathcpt.train.step import train_step

    config = experiment(arguments, llama, precision, layout.data_size)
    state = build(config, layout)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for step in range(max(arguments.steps, arguments.loss_steps)):
        synchronize()
        begin = time.perf_counter()
        result = train_step(state, state.consumed_samples, 1e-4)
        synchronize()
        seconds.append(time.perf_counter() - begin)
        losses.append((result.loss[0] / result.loss[1]).item())
        state.step = step + 1
    found = {
        "precision": precision,
        "seconds": statistics.median(seconds[min(3, len(seconds) - 1) :]),
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if ON_GPU else None,
        "losses": losses,
        "kernels": profile(state) if arguments.profile else None,
    }
    return found | predict(config, layout, found["seconds"])


def predict(config: ExperimentConfig, layout: parallel.Layout, seconds: float) -> dict[str, Any]:
    """Tokens/s and TFLOP/s of `seconds`, and the planner's figures for this card if it is known."""
    assert config.model is not None
    shape = from_llama(config.name, config.model)
    world = torch.distributed.get_world_size()
    training, cut = from_experiment(config, world, fused=ON_GPU and has_transformer_engine())
    card = known_card()
    found: dict[str, Any] = {}
    measured = speed(shape, training, card or load_hardware("h100"), seconds=seconds, gpus=world)
    found["tokens_per_second_per_gpu"] = measured.tokens_per_second_per_gpu
    found["tflops_causal"], found["tflops_full"] = measured.tflops_causal, measured.tflops_full
    stage = memory_per_stage(shape, training, cut)[layout.groups.pp.rank()]
    found["predicted_gib"] = stage.gib
    if card is not None:
        found["mfu"] = measured.mfu
        found["predicted_seconds"] = step_time(shape, training, cut, load_machine(card_name())).total
    return found


def card_name() -> str:
    """The planner's name of this GPU, empty if it knows none."""
    name = torch.cuda.get_device_name().lower() if ON_GPU else ""
    return next((known for known in hardware_names() if known in name), "")


def known_card() -> Hardware | None:
    return load_hardware(card_name()) if card_name() else None


def has_transformer_engine() -> bool:
    from megatron_mathcpt.model.llama import has_transformer_engine

    return has_transformer_engine()


def profile(state: Any) -> list[tuple[str, float]]:
    """The twelve kernels with most time in one step, in milliseconds."""
    from megatron_mathcpt.train.step import train_step

    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if ON_GPU else kinds.CPU]) as profiler:
        train_step(state, state.consumed_samples, 1e-4)
        synchronize()
    field = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, field))
    return [(event.key, getattr(event, field) / 1e3) for event in events[:12]]


def environment() -> dict[str, Any]:
    """Card, clocks, versions, date."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("megatron-core", "transformer-engine"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    clocks = ""
    if ON_GPU:
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        clocks = subprocess.run(
            ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, check=True
        ).stdout
    card = torch.cuda.get_device_name() if ON_GPU else "CPU"
    return {"card": card, "clocks": clocks, "versions": versions, "date": datetime.now(UTC).isoformat()}


def show(rows: list[dict[str, Any]]) -> None:
    """The table, FP8 against bf16, and the loss after the last step."""
    print(
        "precision      step s  tokens/s/GPU  TFLOP/s causal (full)  MFU  peak GiB  predicted s / GiB (error)"
    )
    for row in rows:
        mfu = f"{100 * row['mfu']:.1f} %" if "mfu" in row else "–"
        peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] else "–"
        predicted = f"– / {row['predicted_gib']:.2f}"
        if "predicted_seconds" in row:
            predicted = f"{row['predicted_seconds']:.2f} / {row['predicted_gib']:.1f}"
            time_error = row["predicted_seconds"] / row["seconds"] - 1
            memory_error = row["predicted_gib"] / row["peak_gib"] - 1
            predicted += f" ({100 * time_error:+.1f} % / {100 * memory_error:+.1f} %)"
        print(
            f"{row['precision']:12} {row['seconds']:8.3f} {row['tokens_per_second_per_gpu']:13,.0f}  "
            f"{row['tflops_causal']:8.2f} ({row['tflops_full']:.2f})  {mfu:>12} {peak:>9}   {predicted}"
        )
    base = next((row for row in rows if row["precision"] == "bf16"), rows[0])
    for row in rows:
        if row is not base:
            last = row["losses"][-1] / base["losses"][-1] - 1
            print(
                f"{row['precision']} / {base['precision']}: speed {base['seconds'] / row['seconds']:.2f}x, "
                f"loss after {len(row['losses'])} steps {100 * last:+.3f} %"
            )
    for row in rows:
        for name, milliseconds in row["kernels"] or []:
            print(f"  {row['precision']} {milliseconds:9.2f} ms  {name[:100]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "llama2-7b" if ON_GPU else "tiny"
    parser.add_argument("--shape", default=default, help="tiny, a built-in shape, or a config.json")
    parser.add_argument("--layers", type=int, help="another depth, for cards the model does not fit")
    parser.add_argument("--seq-length", type=int, default=4096 if ON_GPU else 256)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=16 if ON_GPU else 2)
    parser.add_argument("--steps", type=int, default=8 if ON_GPU else 4)
    parser.add_argument("--loss-steps", type=int, default=0, help="at least so many steps, for the loss")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", *FP8_RECIPES])
    for size in ("tp", "pp", "cp"):
        parser.add_argument(f"--{size}", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="kernel times of one step more")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    return parser.parse_args()


def llama_of(arguments: argparse.Namespace) -> LlamaShape:
    if arguments.shape == "tiny":
        llama = TINY
    else:
        shape = load_shape(arguments.shape)
        fields = {name: value for name, value in vars(shape).items() if name in LlamaShape.model_fields}
        llama = LlamaShape(**fields)
    return llama.model_copy(update={"num_layers": arguments.layers}) if arguments.layers else llama


def main() -> None:
    arguments = parse()
    use_cpu()
    fp8 = ON_GPU and has_transformer_engine()
    precisions = arguments.precisions or (["bf16", *FP8_RECIPES] if fp8 else ["fp32", "bf16"])
    if set(precisions) & set(FP8_RECIPES) and not fp8:
        sys.exit(
            "error: FP8 needs a GPU and Transformer Engine; the local layers would ignore it without a word"
        )
    llama = llama_of(arguments)
    sizes = ParallelSection(
        tensor_model_parallel_size=arguments.tp,
        pipeline_model_parallel_size=arguments.pp,
        context_parallel_size=arguments.cp,
        sequence_parallel=arguments.tp > 1,
    )
    layout = parallel.start(sizes, 1) if "RANK" in os.environ else parallel.start_alone(sizes)
    measured = ceilings(from_llama(arguments.shape, llama), arguments.micro_batch_size * arguments.seq_length)
    rows = []
    for precision in precisions:
        rows.append(run(arguments, llama, layout, precision))
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
    if layout.is_writer:
        about = environment()
        print(f"{about['card']}, {about['versions']}, {about['date']}\n{about['clocks']}")
        print("  ".join(f"{name} {value:.1f}" for name, value in measured.items()))
        show(rows)
        if arguments.out:
            arguments.out.write_text(json.dumps(about | {"ceilings": measured, "rows": rows}, indent=1))
    parallel.stop()


if __name__ == "__main__":
    main()
