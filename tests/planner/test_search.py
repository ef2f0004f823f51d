"""The search against brute force on a small case, on refused and oversized layouts, and on published ones."""

from dataclasses import replace

import pytest

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Layout, Training, illegal
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.memory import GIB, peak_memory
from megatron_mathcpt.planner.search import search, why_slower
from megatron_mathcpt.planner.shapes import load_shape
from megatron_mathcpt.planner.step_time import step_time

H100 = load_machine("h100")
SHAPE = load_shape("llama3-8b")
TRAINING = Training(seq_length=8192, global_batch_size=128)


def test_eight_gpus_by_brute_force() -> None:
    result = search(SHAPE, TRAINING, 8, H100)
    ours = {plan.layout for plan in result.plans} | {misfit.layout for misfit in result.misfits}
    sizes = [1, 2, 4, 8]
    every = [
        Layout(t, p, c, 8 // (t * p * c), virtual_pipeline_model_parallel_size=v, micro_batch_size=b)
        for t in sizes
        for p in sizes
        for c in sizes
        for v in (1, 2, 4, 8, 16, 32)
        for b in sizes
        if t * p * c <= 8
    ]
    every = [replace(layout, sequence_parallel=layout.tensor_model_parallel_size > 1) for layout in every]
    legal = [layout for layout in every if not illegal(SHAPE, TRAINING, layout)]
    even = {replace(layout, recompute="none") for layout in ours if layout.stage_layers is None}
    assert even == set(legal)
    best = min(
        (layout for layout in legal if peak_memory(SHAPE, TRAINING, layout).gib <= 0.9 * 79.6),
        key=lambda layout: step_time(SHAPE, TRAINING, layout, H100).total,
    )
    assert result.plans[0].layout == best


def test_plans_fit_are_legal_and_in_order() -> None:
    shape = load_shape("llama3.1-405b")
    result = search(shape, replace(TRAINING, global_batch_size=1024), 2048, H100, limit_gib=64)
    assert all(plan.memory.gib <= 64 for plan in result.plans)
    assert all(misfit.excess_gib > 0 for misfit in result.misfits)
    assert all(plan.layout.gpus == 2048 for plan in result.plans)
    totals = [plan.time.total for plan in result.plans]
    assert totals == sorted(totals)
    assert all(sum(plan.layout.layers(shape)) == 126 for plan in result.plans)
    assert sum(result.refused.values()) > 0
    assert "%" in why_slower(result.plans[-1], result.plans[0])


@pytest.mark.parametrize("gpus", [1, 6, 7, 24, 72])
def test_every_layout_uses_all_gpus(gpus: int) -> None:
    result = search(SHAPE, replace(TRAINING, global_batch_size=504), gpus, H100)
    layouts = [plan.layout for plan in result.plans] + [misfit.layout for misfit in result.misfits]
    assert layouts
    assert {layout.gpus for layout in layouts} == {gpus}


def test_nothing_fits_says_by_how_much() -> None:
    shape = load_shape("llama3-70b")
    result = search(shape, TRAINING, 8, H100)
    assert not result.plans
    closest = result.misfits[0]
    limit = 0.9 * 79.6
    assert closest.excess_gib == pytest.approx(closest.memory.total / GIB - limit)
    assert closest.reason == (
        f"{closest.excess_gib:.1f} GiB too much on stage {closest.memory.stage}, most of it optimizer"
    )


def test_recomputation_only_where_it_is_needed() -> None:
    tight = search(SHAPE, TRAINING, 8, H100, limit_gib=60)
    assert any(plan.layout.recompute != "none" for plan in tight.plans)
    for plan in tight.plans:
        if plan.layout.recompute != "none":
            assert peak_memory(SHAPE, TRAINING, replace(plan.layout, recompute="none")).gib > 60


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensor_model_parallel_size": 3}, "attention heads"),
        ({"tensor_model_parallel_size": 16}, "query groups"),
        ({"context_parallel_size": 3}, "2 CP"),
        ({"data_parallel_size": 3}, "global batch"),
        ({"pipeline_model_parallel_size": 5}, "by PP"),
        ({"virtual_pipeline_model_parallel_size": 2}, "PP above 1"),
        ({"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 3}, "virtual stages"),
        (
            {
                "pipeline_model_parallel_size": 4,
                "virtual_pipeline_model_parallel_size": 2,
                "data_parallel_size": 64,
            },
            "microbatches",
        ),
    ],
)
def test_illegal_layouts_say_why(change: dict[str, int], reason: str) -> None:
    assert reason in (illegal(SHAPE, TRAINING, Layout(**change)) or "")  # type: ignore[arg-type]


def test_fp8_on_a_gpu_without_it_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no FP8"):
        search(SHAPE, replace(TRAINING, precision="fp8_delayed"), 8, load_machine("a100"))
    with pytest.raises(ConfigError, match="needs Blackwell"):
        search(SHAPE, replace(TRAINING, precision="fp8_mx"), 8, H100)
    with pytest.raises(ConfigError, match="is for Hopper"):
        search(SHAPE, replace(TRAINING, precision="fp8_blockwise"), 8, load_machine("b200"))
    assert search(SHAPE, replace(TRAINING, precision="fp8_mx"), 8, load_machine("b200")).plans
