"""Llama-3-8B in bf16 on one GPU, 128 sequences of 8192 tokens, unless given otherwise."""

from typing import Any

from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import load_shape
from tests.benchmarks.planner_published import Row

SHAPE = load_shape("llama3-8b")
PARAMETERS = 8_030_261_248
LAYER = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336  # weights of one layer's matrices
SMALL = ("optimizer.use_precision_aware_optimizer=true",)  # Transformer Engine's AdamW
SMALL_MOMENTS = (*SMALL, "optimizer.exp_avg_dtype=bf16", "optimizer.exp_avg_sq_dtype=bf16")


def planned(*overrides: str, dp: int = 1, **fields: Any) -> PlannedRun:
    """Return the run with other `fields` of a published row, replicated over `dp` ranks, and `overrides`."""
    usual = {"shape": SHAPE, "seq_length": 8192, "global_batch_size": 128, "grad_reduce_in_fp32": True}
    row = Row.model_validate(usual | {"loss_fusion": None, "overrides": overrides} | fields)
    return row.model_copy(update={"gpus": dp * row.tp * row.pp * row.cp}).planned()


def bf16_ends(start: int, end: int) -> tuple[str, ...]:
    """Return overrides that leave layers at the start and the end in bf16."""
    counts = (f"precision.num_layers_at_{name}_in_bf16={n}" for name, n in (("start", start), ("end", end)))
    return ("precision.first_last_layers_bf16=true", *counts)
