"""A search's result as tables for a terminal."""

from collections.abc import Iterator

from rich.table import Table

from megatron_mathcpt.planner.flops import flops_per_token, parameters
from megatron_mathcpt.planner.layout import Layout, Training
from megatron_mathcpt.planner.machine import Machine
from megatron_mathcpt.planner.memory import GIB, memory_per_stage
from megatron_mathcpt.planner.search import Plan, SearchResult, why_slower
from megatron_mathcpt.planner.shapes import ModelShape
from megatron_mathcpt.planner.start import PRECISION_OF
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
    yield f"{len(result.plans)} layouts fit, {len(result.misfits)} do not."
    for misfit in result.misfits[:3]:
        yield f"  closest miss: {misfit.layout.name}: {misfit.reason}"
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1]):
        yield f"  {count} refused: {reason}"


def settings(layout: Layout, training: Training) -> list[str]:
    """Overrides that give a training config this layout."""
    overlaps = layout.data_parallel_size * layout.context_parallel_size > 1
    tensor = layout.tensor_model_parallel_size
    values: dict[str, object] = {
        "parallel.tensor_model_parallel_size": tensor,
        "parallel.pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        "parallel.context_parallel_size": layout.context_parallel_size,
        "parallel.virtual_pipeline_model_parallel_size": layout.virtual_pipeline_model_parallel_size,
        "parallel.sequence_parallel": layout.sequence_parallel,
        "parallel.use_distributed_optimizer": training.use_distributed_optimizer,
        **_unusual(training),
        "parallel.overlap_grad_reduce": overlaps,
        "parallel.overlap_param_gather": overlaps and training.use_distributed_optimizer,
        **_stages(layout),
        **_recompute(layout),
        **_precision(training),
        "train.seq_length": training.seq_length,
        "train.micro_batch_size": layout.micro_batch_size,
        "train.global_batch_size": training.global_batch_size,
    }
    if training.tp_comm_overlap and tensor > 1:
        values["parallel.tp_comm_overlap"] = True
    if layout.virtual_pipeline_model_parallel_size == 1:
        values["parallel.virtual_pipeline_model_parallel_size"] = None
    return [f"{name}={_yaml(value)}" for name, value in values.items()]


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _stages(layout: Layout) -> dict[str, object]:
    """Embedding and head counted as layers, or the ends' layers where only they differ."""
    layers = layout.stage_layers
    if layers is None:
        return {}
    stages = len(layers)
    slots = (sum(layers) + 2) // stages
    if layers == (slots - 1, *[slots] * (stages - 2), slots - 1):
        names = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
        return {f"parallel.{name}": True for name in names}
    names = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    return {f"parallel.{name}": layers[end] for name, end in zip(names, (0, -1), strict=True)}


def _recompute(layout: Layout) -> dict[str, object]:
    """Whole layers, the first of each stage or all of them one by one; or every MLP."""
    if layout.recompute == "none":
        return {}
    if layout.recompute == "mlp":
        return {"parallel.recompute_granularity": "selective", "parallel.recompute_modules": "[mlp]"}
    every = layout.recompute_num_layers is None
    return {
        "parallel.recompute_granularity": "full",
        "parallel.recompute_method": "uniform" if every else "block",
        "parallel.recompute_num_layers": 1 if every else layout.recompute_num_layers,
    }


def _unusual(training: Training) -> dict[str, object]:
    """What is fused, summed in bf16 or kept in fewer bytes, where it is not the default."""
    usual = _fusions(Training(training.seq_length, training.global_batch_size))
    return {name: value for name, value in _fusions(training).items() if value != usual[name]}


def _fusions(training: Training) -> dict[str, object]:
    return {
        "parallel.grad_reduce_in_fp32": training.grad_reduce_in_fp32,
        "parallel.gradient_accumulation_fusion": training.gradient_accumulation_fusion,
        "parallel.cross_entropy_loss_fusion": training.cross_entropy_fusion_impl is not None,
        "optimizer.use_precision_aware_optimizer": training.use_precision_aware_optimizer,
        "optimizer.main_params_dtype": training.main_params_dtype,
        "optimizer.exp_avg_dtype": training.exp_avg_dtype,
        "optimizer.exp_avg_sq_dtype": training.exp_avg_sq_dtype,
    }


def _precision(training: Training) -> dict[str, object]:
    """FP8 and its recipe; the formats are Transformer Engine's own for it."""
    if not training.is_fp8:
        return {}
    recipe = next(name for name, precision in PRECISION_OF.items() if precision == training.precision)
    values: dict[str, object] = {
        "precision.params_dtype": "bf16",
        "precision.fp8": "hybrid" if recipe in ("delayed", "tensorwise") else "e4m3",
        "precision.fp8_recipe": recipe,
        "precision.fp8_param_gather": training.fp8_parameters,
    }
    if training.bf16_layers != (0, 0):
        start, end = training.bf16_layers
        values |= {
            "precision.first_last_layers_bf16": True,
            "precision.num_layers_at_start_in_bf16": start,
            "precision.num_layers_at_end_in_bf16": end,
        }
    return values


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
