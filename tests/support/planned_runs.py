"""Planned runs of Llama-3-8B in bf16, by default on one GPU with a batch of 128 sequences of 8192 tokens."""

from typing import Any

from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import load_shape
from tests.benchmarks.planner_published import Row

SHAPE = load_shape("llama3-8b")
PARAMETERS = 8_030_261_248
LAYER = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336  # weights of one layer's matrices
SMALL = ("optimizer.use_precision_aware_optimizer=true",)  # Transformer Engine's AdamW
SMALL_MOMENTS = (*SMALL, "optimizer.exp_avg_dtype=bf16", "optimizer.exp_avg_sq_dtype=bf16")


def planned_8b(*overrides: str, dp: int = 1, **fields: Any) -> PlannedRun:
    """The default run with other `fields` of a published row, config `overrides`, and `dp` replicas."""
    default = {"shape": SHAPE, "seq_length": 8192, "global_batch_size": 128, "grad_reduce_in_fp32": True}
    row = Row.model_validate(default | {"loss_fusion": None, "overrides": overrides} | fields)
    return row.model_copy(update={"gpus": dp * row.tp * row.pp * row.cp}).planned()


def bf16_ends(start: int, end: int) -> tuple[str, ...]:
    """Overrides that leave layers at the start and the end in bf16."""
    counts = (f"precision.num_layers_at_{name}_in_bf16={n}" for name, n in (("start", start), ("end", end)))
    return ("precision.first_last_layers_bf16=true", *counts)
