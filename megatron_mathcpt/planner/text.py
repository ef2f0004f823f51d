"""A search's result as tables for a terminal."""

from collections.abc import Iterator

from rich.table import Table

from megatron_mathcpt.planner.flops import flops_per_token, parameters
from megatron_mathcpt.planner.layout import Layout, Training
from megatron_mathcpt.planner.machine import Machine
from megatron_mathcpt.planner.memory import GIB, memory_per_stage
from megatron_mathcpt.planner.search import Plan, SearchResult, why_slower
from megatron_mathcpt.planner.shapes import ModelShape
from megatron_mathcpt.planner.step_time import speed


def describe(
    shape: ModelShape,
    training: Training,
    machine: Machine,
    result: SearchResult,
    *,
    train_tokens: float,
    top: int,
) -> Iterator[Table | str]:
    """The ranked layouts, the best one's memory and step, and why the others are not there."""
    flops = flops_per_token(shape, training.seq_length)
    yield (
        f"{shape.name}: {parameters(shape).total / 1e9:.2f} B parameters, "
        f"{flops.causal / 1e9:.1f} GFLOP a token with causal attention ({flops.full / 1e9:.1f} with full)"
    )
    if result.plans:
        yield _ranking(shape, training, machine, result.plans[:top], train_tokens)
        yield _memory(shape, training, result.plans[0])
        yield _step(result.plans[0])
        yield "Settings of a run: " + " ".join(settings(result.plans[0].layout, training))
        yield from missing_settings(result.plans[0].layout, training)
    yield f"{len(result.plans)} layouts fit, {len(result.misfits)} do not."
    for misfit in result.misfits[:3]:
        yield f"  closest miss: {misfit.layout.name}: {misfit.reason}"
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1]):
        yield f"  {count} refused: {reason}"


def settings(layout: Layout, training: Training) -> list[str]:
    """Overrides that give a training config this layout."""
    overlaps = layout.data_parallel_size * layout.context_parallel_size > 1
    parallel = {
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        "context_parallel_size": layout.context_parallel_size,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline_model_parallel_size,
        "sequence_parallel": str(layout.sequence_parallel).lower(),
        "use_distributed_optimizer": str(training.use_distributed_optimizer).lower(),
        "overlap_grad_reduce": str(overlaps).lower(),
        "overlap_param_gather": str(overlaps and training.use_distributed_optimizer).lower(),
    }
    if layout.virtual_pipeline_model_parallel_size == 1:
        parallel["virtual_pipeline_model_parallel_size"] = "null"
    train = {
        "seq_length": training.seq_length,
        "micro_batch_size": layout.micro_batch_size,
        "global_batch_size": training.global_batch_size,
    }
    return [f"parallel.{name}={value}" for name, value in parallel.items()] + [
        f"train.{name}={value}" for name, value in train.items()
    ]


def missing_settings(layout: Layout, training: Training) -> Iterator[str]:
    """What of this layout the training config cannot say yet."""
    asked = {
        "recomputation": layout.recompute != "none",
        "embedding and head as layers of the pipeline": layout.stage_layers is not None,
        "FP8": training.is_fp8,
        "gradients in bf16": not training.grad_reduce_in_fp32,
        "tensor-parallel overlap": training.tp_comm_overlap and layout.tensor_model_parallel_size > 1,
    }
    missing = [name for name, needed in asked.items() if needed]
    if missing:
        yield f"  no setting of the training config yet: {', '.join(missing)}"


def _ranking(
    shape: ModelShape, training: Training, machine: Machine, plans: tuple[Plan, ...], train_tokens: float
) -> Table:
    table = Table(
        title="Layouts that fit, fastest first (MFU: causal attention, bf16 peak)", title_justify="left"
    )
    table.add_column("layout", no_wrap=True)
    for heading in ("GiB", "step s", "tok/s/GPU", "TFLOP/s", "MFU %", "days", "GPU-h"):
        table.add_column(heading, justify="right")
    table.add_column("loses by")
    for plan in plans:
        seconds, gpus = plan.time.total, plan.layout.gpus
        found = speed(shape, training, machine.hardware, seconds=seconds, gpus=gpus)
        hours = train_tokens / training.tokens_per_step * seconds / 3600
        table.add_row(
            plan.layout.name,
            f"{plan.memory.gib:.1f}",
            f"{seconds:.2f}",
            f"{found.tokens_per_second_per_gpu:,.0f}",
            f"{found.tflops_causal:.0f}",
            f"{100 * found.mfu:.1f}",
            f"{hours / 24:.2f}",
            f"{hours * gpus:,.0f}",
            "" if plan is plans[0] else why_slower(plan, plans[0]),
        )
    return table


def _memory(shape: ModelShape, training: Training, plan: Plan) -> Table:
    """Memory of the stages that differ most: the first two and the last."""
    stages = memory_per_stage(shape, training, plan.layout)
    shown = stages if len(stages) <= 4 else [*stages[:2], stages[len(stages) // 2], stages[-1]]
    table = Table(title=f"Memory of {plan.layout.name}, GiB", title_justify="left")
    table.add_column("stage")
    names = [name for name in shown[0].parts if any(stage.parts[name] for stage in shown)]
    for name in [*names, "total"]:
        table.add_column(name, justify="right")
    for stage in shown:
        sizes = [stage.parts[name] / GIB for name in names] + [stage.gib]
        table.add_row(str(stage.stage), *(f"{size:.1f}" for size in sizes))
    return table


def _step(plan: Plan) -> Table:
    table = Table(title=f"One step of {plan.layout.name}, slowest stage", title_justify="left")
    table.add_column("term")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    total = plan.time.total
    for name, seconds in [*plan.time.terms.items(), ("total", total)]:
        if seconds:
            table.add_row(name, f"{seconds:.3f}", f"{100 * seconds / total:.1f} %")
    return table
