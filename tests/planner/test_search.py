"""The search against brute force, and what goes in and comes out: overrides, settings, tables, command."""

import io
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from megatron_mathcpt.config.base import build_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import (
    Layout,
    Precision,
    Training,
    from_experiment,
    illegal,
    search_config,
)
from megatron_mathcpt.planner.machine import check_precision, load_machine
from megatron_mathcpt.planner.memory import GIB, check_memory, peak_memory
from megatron_mathcpt.planner.search import describe, search, settings, why_slower
from megatron_mathcpt.planner.shapes import load_shape
from megatron_mathcpt.planner.step_time import step_time

ROOT = Path(__file__).resolve().parents[2]
H100 = load_machine("h100")
SHAPE = load_shape("llama3-8b")
SIZES = {"seq_length": 8192, "global_batch_size": 128}
TRAINING = Training(**SIZES)  # type: ignore[arg-type]


def experiment(**parallel: object) -> ExperimentConfig:
    """A run of Llama-3-8B in bf16 on one GPU, but for `parallel`."""
    shape = LlamaShape(**SHAPE.model_dump(include=set(LlamaShape.model_fields)))
    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1} | parallel
    update = {"model": shape, "parallel": ParallelSection.model_validate(sizes)}
    return search_config([], **SIZES).model_copy(update=update)


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
    totals = [plan.time.total for plan in result.plans]
    assert totals == sorted(totals)
    assert all(sum(plan.layout.layers(shape)) == 126 for plan in result.plans)
    assert sum(result.refused.values()) > 0
    assert "%" in why_slower(result.plans[-1], result.plans[0])


@pytest.mark.parametrize("gpus", [1, 6, 7, 24, 72])
def test_every_layout_uses_all_gpus(gpus: int) -> None:
    result = search(SHAPE, replace(TRAINING, global_batch_size=504), gpus, H100)
    layouts = [plan.layout for plan in result.plans] + [misfit.layout for misfit in result.misfits]
    assert {layout.gpus for layout in layouts} == {gpus}


def test_nothing_fits_says_by_how_much() -> None:
    result = search(load_shape("llama3-70b"), TRAINING, 8, H100)
    assert not result.plans
    closest = result.misfits[0]
    assert closest.excess_gib == pytest.approx(closest.memory.total / GIB - 0.9 * 79.6)
    assert closest.reason == (
        f"{closest.excess_gib:.1f} GiB too much on stage {closest.memory.stage}, most of it optimizer"
    )


def test_recomputation_only_where_it_is_needed() -> None:
    tight = search(SHAPE, TRAINING, 8, H100, limit_gib=60)
    recomputing = [plan.layout for plan in tight.plans if plan.layout.recompute != "none"]
    assert recomputing
    for layout in recomputing:
        assert peak_memory(SHAPE, TRAINING, replace(layout, recompute="none")).gib > 60


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(3), "attention heads"),
        (Layout(16), "query groups"),
        (Layout(1, 1, 3), "2 CP"),
        (Layout(1, 1, 1, 3), "global batch"),
        (Layout(1, 5), "by PP"),
        (Layout(1, 1, 1, 1, 2), "PP above 1"),
        (Layout(1, 4, 1, 1, 3), "virtual stages"),
        (Layout(1, 4, 1, 64, 2), "microbatches"),
    ],
)
def test_illegal_layouts_say_why(layout: Layout, reason: str) -> None:
    assert reason in (illegal(SHAPE, TRAINING, layout) or "")


@pytest.mark.parametrize(
    ("precision", "capability", "message"),
    [
        ("bf16", (8, 0), None),
        ("fp8_delayed", (8, 0), "precision.fp8: this GPU has no FP8 products"),
        ("fp8_current", (8, 9), None),
        ("fp8_blockwise", (9, 0), None),
        ("fp8_blockwise", (10, 0), "take mxfp8 on Blackwell"),
        ("fp8_blockwise", (8, 9), "blockwise is for Hopper"),
        ("fp8_mx", (9, 0), "take blockwise on Hopper"),
        ("fp8_mx", (10, 0), None),
    ],
)
def test_recipes_are_refused_by_name_on_other_gpus(
    precision: Precision, capability: tuple[int, int], message: str | None
) -> None:
    refused = pytest.raises(ConfigError, match=message) if message else nullcontext()
    with refused:
        check_precision(precision, capability)
    hardware = H100.hardware.model_copy(update={"capability": capability})
    with refused:
        search(SHAPE, replace(TRAINING, precision=precision), 1, replace(H100, hardware=hardware))


def test_a_run_that_fits_says_how_much_it_needs() -> None:
    config = experiment(context_parallel_size=2, use_distributed_optimizer=True)
    # 2 + 4 bytes a parameter, 12/64 of the optimizer, 32 layers of 4096 tokens, 6 bytes a logit.
    expected = 8_030_261_248 * (6 + 12 / 64) + 32 * 4096 * 149_632 + 6 * 4096 * 128256
    assert check_memory(config, 64, memory_gib=79.6).startswith(
        f"predicted {expected / 2**30:.1f} of 79.6 GiB on pipeline stage 0 (gradients 29.9,"
    )
    with pytest.raises(ConfigError, match=r"predicted 155\.8 of 79.6 GiB .* do not fit; lower train.micro"):
        check_memory(experiment(context_parallel_size=2), 8, memory_gib=79.6)


def test_layout_and_training_are_those_of_the_config() -> None:
    config = experiment(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=4,
        sequence_parallel=True,
    )
    # Nothing is fused where the layers are not, whatever the config asks for.
    plain = replace(TRAINING, use_distributed_optimizer=False)
    unfused = replace(plain, fused=False, gradient_accumulation_fusion=False)
    assert from_experiment(config, 16, fused=False) == (unfused, Layout(2, 2, 1, 4, 4))
    assert from_experiment(config, 16, fused=True) == (plain, Layout(2, 2, 1, 4, 4))
    assert Layout(2, 2, 1, 4, 4).name == "TP2 PP2x4 CP1 DP4 MBS1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision.fp8=e4m3", "fp8 needs fp8_recipe"),
        ("precision.fp8_recipes=blockwise", "unknown key; did you mean 'fp8_recipe'"),
        ("parallel.grad_reduce_in_fp32=0", "grad_reduce_in_fp32: Input should be a valid boolean"),
        ("parallel.tensor_model_parallel_size=2", "a search cannot take it as given; known are precision"),
        ("optimizer.lr=1e-4", "a search cannot take it as given"),
        (
            "optimizer.use_precision_aware_optimizer=true parallel.use_distributed_optimizer=false",
            "optimizer.use_precision_aware_optimizer: needs parallel.use_distributed_optimizer",
        ),
    ],
)
def test_an_override_that_a_search_cannot_follow_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        search_config(override.split(), **SIZES)


OVERLAP = "parallel.tp_comm_overlap=true "
UNUSUAL = (
    "parallel.grad_reduce_in_fp32=false parallel.gradient_accumulation_fusion=false "
    "parallel.cross_entropy_loss_fusion=true optimizer.use_precision_aware_optimizer=true "
    "optimizer.main_params_dtype=fp16 optimizer.exp_avg_dtype=bf16 optimizer.exp_avg_sq_dtype=bf16"
)
SPARED = (
    "precision.fp8=hybrid precision.fp8_recipe=tensorwise precision.first_last_layers_bf16=true "
    "precision.num_layers_at_start_in_bf16=2 precision.num_layers_at_end_in_bf16=4"
)
BLOCKS = "precision.fp8=e4m3 precision.fp8_recipe=blockwise precision.fp8_param_gather=true"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", TRAINING),
        (
            OVERLAP + UNUSUAL,
            replace(
                TRAINING,
                grad_reduce_in_fp32=False,
                gradient_accumulation_fusion=False,
                cross_entropy_fusion_impl="te",
                use_precision_aware_optimizer=True,
                main_params_dtype="fp16",
                exp_avg_dtype="bf16",
                exp_avg_sq_dtype="bf16",
                tp_comm_overlap=True,
            ),
        ),
        ("precision.fp8=hybrid precision.fp8_recipe=delayed", replace(TRAINING, precision="fp8_delayed")),
        (SPARED, replace(TRAINING, precision="fp8_current", bf16_layers=(2, 4))),
        (BLOCKS, replace(TRAINING, precision="fp8_blockwise", fp8_parameters=True)),
        ("precision.fp8=e4m3 precision.fp8_recipe=mxfp8", replace(TRAINING, precision="fp8_mx")),
    ],
)
def test_printed_settings_give_a_config_the_planned_layout(overrides: str, expected: Training) -> None:
    given = search_config(overrides.split(), **SIZES)
    training, _ = from_experiment(given, 1, fused=True)
    assert training == expected
    machine = load_machine("b200" if training.precision == "fp8_mx" else "h100")
    found = search(SHAPE, training, 16, machine, limit_gib=71.6)  # some layouts must recompute
    layouts = [plan.layout for plan in found.plans]
    kinds: dict[tuple[object, ...], Layout] = {}  # one of each kind, the fastest
    for layout in layouts:
        virtual = layout.virtual_pipeline_model_parallel_size > 1
        kinds.setdefault((layout.recompute, bool(layout.stage_layers), virtual), layout)
    assert {kind[0] for kind in kinds} == {"none", "mlp", "full"}
    assert {kind[1] for kind in kinds} == {False, True}
    for layout in [*kinds.values(), *layouts[:20]]:
        run = experiment().model_dump(mode="json")
        config = build_config(run, ExperimentConfig, settings(layout, given), "run")
        check_experiment(config, 16)
        overlap = training.tp_comm_overlap and layout.tensor_model_parallel_size > 1
        assert from_experiment(config, 16, fused=True) == (replace(training, tp_comm_overlap=overlap), layout)


def test_tables_show_days_and_gpu_hours() -> None:
    result = search(SHAPE, TRAINING, 8, H100)
    file = io.StringIO()
    console = Console(file=file, width=200)
    for part in describe(result, search_config([], **SIZES), train_tokens=1e12, top=3):
        console.print(part)
    text = file.getvalue()
    best = result.plans[0]
    hours = 1e12 / (128 * 8192) * best.time.total / 3600
    row = next(line for line in text.splitlines() if best.layout.name in line)
    assert f"{hours / 24:.2f}" in row
    assert f"{8 * hours:,.0f}" in row
    assert f"{len(result.plans)} layouts fit, {len(result.misfits)} do not." in text
    assert "8.03 B parameters, 51.5 GFLOP a token with causal attention (57.9 with full)" in text


def test_command_ranks_layouts_and_refuses_in_one_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "plan_layout.py"), "llama2-7b", "--gpus", "8"]
        environment = {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, check=False
        )

    found = run(*BLOCKS.split(), "--global-batch-size", "128")
    assert found.returncode == 0
    for text in ("Layouts that fit, fastest first", "precision.fp8_recipe=blockwise", "FP8 casts"):
        assert text in found.stdout
    wrong = run("--hardware", "tpu")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: hardware 'tpu': unknown; known are a100, b200, h100, h200\n"
