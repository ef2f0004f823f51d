"""A search's result as tables for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from megatron_mathcpt.planner.layout import Training
from megatron_mathcpt.planner.machine import Machine
from megatron_mathcpt.planner.memory import GIB, memory_per_stage
from megatron_mathcpt.planner.search import Plan, SearchResult, why_slower
from megatron_mathcpt.planner.shapes import ModelShape, flops_per_token
from megatron_mathcpt.planner.start import settings
from megatron_mathcpt.planner.step_time import speed

_LOSSES = "loses by"


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
        f"{shape.name}: {shape.total / 1e9:.2f} B parameters, "
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


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of numbers, after a first column of names."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(columns):
        names = place == 0 or heading == _LOSSES
        table.add_column(heading, justify="left" if names else "right", no_wrap=heading == "layout")
    for row in rows:
        table.add_row(*row)
    return table


def _ranking(
    shape: ModelShape, training: Training, machine: Machine, plans: tuple[Plan, ...], train_tokens: float
) -> Table:
    rows = []
    for plan in plans:
        seconds, gpus = plan.time.total, plan.layout.gpus
        found = speed(shape, training, machine.hardware, seconds=seconds, gpus=gpus)
        hours = train_tokens / training.tokens_per_step * seconds / 3600
        rows.append(
            (
                plan.layout.name,
                *(f"{plan.memory.gib:.1f}", f"{seconds:.2f}", f"{found.tokens_per_second_per_gpu:,.0f}"),
                *(f"{found.tflops_causal:.0f}", f"{100 * found.mfu:.1f}"),
                *(f"{hours / 24:.2f}", f"{hours * gpus:,.0f}"),
                "" if plan is plans[0] else why_slower(plan, plans[0]),
            )
        )
    title = "Layouts that fit, fastest first (MFU: causal attention, bf16 peak)"
    columns = ("layout", "GiB", "step s", "tok/s/GPU", "TFLOP/s", "MFU %", "days", "GPU-h", _LOSSES)
    return _table(title, columns, rows)


def _memory(shape: ModelShape, training: Training, plan: Plan) -> Table:
    """Memory of the stages that differ most: the first two and the last."""
    stages = memory_per_stage(shape, training, plan.layout)
    shown = stages if len(stages) <= 4 else [*stages[:2], stages[len(stages) // 2], stages[-1]]
    names = [name for name in shown[0].parts if any(stage.parts[name] for stage in shown)]
    rows = (
        (str(stage.stage), *(f"{stage.parts[name] / GIB:.1f}" for name in names), f"{stage.gib:.1f}")
        for stage in shown
    )
    return _table(f"Memory of {plan.layout.name}, GiB", ("stage", *names, "total"), rows)


def _step(plan: Plan) -> Table:
    total = plan.time.total
    rows = (
        (name, f"{seconds:.3f}", f"{100 * seconds / total:.1f} %")
        for name, seconds in [*plan.time.terms.items(), ("total", total)]
        if seconds
    )
    return _table(f"One step of {plan.layout.name}, slowest stage", ("term", "seconds", "share"), rows)
