"""Layouts of many cases as one HTML page: searched beforehand, picked and drawn in the page, no server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_mathcpt.planner.layout import Precision, Training
from megatron_mathcpt.planner.machine import Machine
from megatron_mathcpt.planner.memory import GIB, memory_per_stage
from megatron_mathcpt.planner.search import MEMORY_SHARE, Plan, search, why_slower
from megatron_mathcpt.planner.shapes import ModelShape, load_shape, shape_names
from megatron_mathcpt.planner.step_time import speed

_PLANS = 8  # shown of each case
_STAGES = 16  # drawn of each plan
_SAME = {"llama3.1-8b", "llama3.1-70b"}  # as llama3-8b and llama3-70b but for the rotary base


@dataclass(frozen=True)
class Grid:
    """The cases of a page: every combination of model, GPUs, global batch and precision."""

    shapes: Sequence[ModelShape]
    gpus: Sequence[int]
    batches: Sequence[int]
    precisions: Sequence[Precision]
    training: Training  # the rest of it, and the batch and precision shown first
    start_gpus: int


def render_page(grid: Grid, machine: Machine, machine_name: str, style: str) -> str:
    """The page as HTML; `style` is the report's style sheet."""
    environment = Environment(
        loader=PackageLoader("megatron_mathcpt.planner"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # terms and parts have an order
    hardware = machine.hardware
    first = grid.training
    data = {
        "start": [grid.shapes[0].name, grid.start_gpus, first.global_batch_size, first.precision],
        "memory_gib": hardware.memory_gib,
        "limit_gib": MEMORY_SHARE * hardware.memory_gib,
        "models": [shape.name for shape in grid.shapes],
        "gpus": list(grid.gpus),
        "batches": list(grid.batches),
        "precisions": list(grid.precisions),
        "seq_length": grid.training.seq_length,
        "cases": dict(_cases(grid, machine)),
    }
    page: str = environment.get_template("page.html.j2").render(
        data=data, machine=machine_name, hardware=hardware, style=style, share=MEMORY_SHARE
    )
    return page


def _cases(grid: Grid, machine: Machine) -> Iterator[tuple[str, dict[str, Any]]]:
    cases = product(grid.shapes, grid.gpus, grid.batches, grid.precisions)
    for shape, gpus, batch, precision in cases:
        training = replace(grid.training, global_batch_size=batch, precision=precision)
        result = search(shape, training, gpus, machine)
        closest = result.misfits[0] if result.misfits else None
        yield (
            f"{shape.name}|{gpus}|{batch}|{precision}",
            {
                "plans": [
                    _plan(shape, training, plan, result.plans[0], machine) for plan in result.plans[:_PLANS]
                ],
                "fitting": len(result.plans),
                "misfits": len(result.misfits),
                "closest": f"{closest.layout.name}: {closest.reason}" if closest else "",
            },
        )


def _plan(shape: ModelShape, training: Training, plan: Plan, best: Plan, machine: Machine) -> dict[str, Any]:
    """A plan in few bytes: seconds by term, and GiB by part on at most `_STAGES` stages."""
    stages = memory_per_stage(shape, training, plan.layout)
    step = max(1, (len(stages) - 2) // (_STAGES - 2) + 1) if len(stages) > _STAGES else 1
    drawn = [*stages[:-1:step], stages[-1]] if len(stages) > 1 else stages
    found = speed(shape, training, machine.hardware, seconds=plan.time.total, gpus=plan.layout.gpus)
    return {
        "name": plan.layout.name,
        "gib": round(plan.memory.gib, 2),
        "seconds": round(plan.time.total, 4),
        "rate": round(found.tokens_per_second_per_gpu),
        "tflops": round(found.tflops_causal),
        "mfu": round(100 * found.mfu, 1),
        "why": "" if plan is best else why_slower(plan, best),
        "terms": {name: round(value, 4) for name, value in plan.time.terms.items() if value >= 5e-5},
        "stages": [
            {
                "stage": stage.stage,
                "parts": {name: round(size / GIB, 2) for name, size in stage.parts.items() if size},
            }
            for stage in drawn
        ],
    }


def default_grid(model: str, gpus: int, training: Training, machine: Machine) -> Grid:
    """`model` and the built-in shapes on 8 to 2048 GPUs, with the asked global batch and others."""
    names = [model, *(name for name in shape_names() if name != model and name not in _SAME)]
    known: list[Precision] = ["bf16", "fp8_delayed"] if machine.hardware.fp8_tflops else ["bf16"]
    precisions = known if training.precision in known else [*known, training.precision]
    return Grid(
        shapes=[load_shape(name) for name in names],
        gpus=sorted({gpus, *(2**power for power in range(3, 12))}),
        batches=sorted({256, 1024, 4096, training.global_batch_size}),
        precisions=precisions,
        training=training,
        start_gpus=gpus,
    )
