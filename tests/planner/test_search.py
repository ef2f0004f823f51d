"""The search against brute force; its overrides, settings, tables and refusals."""

import re
from itertools import product

import pytest

from megatron_mathcpt.commands.main import main
from megatron_mathcpt.config.base import build_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.machine import check_recipe, load_machine
from megatron_mathcpt.planner.memory import check_memory, peak_memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.search import SearchResult, describe, given_config, search, settings
from megatron_mathcpt.planner.shapes import load_shape
from megatron_mathcpt.planner.step_time import step_time
from tests.support.planned_runs import PARAMETERS, SHAPE, SMALL, SMALL_MOMENTS, bf16_ends, planned_8b

H100 = load_machine("h100")
BATCH = {"seq_length": 8192, "global_batch_size": 128}
GIVEN = given_config(SHAPE, [], **BATCH)


def found_runs(result: SearchResult) -> list[PlannedRun]:
    return [plan.run for plan in result.plans] + [run for run, _ in result.misfits]


def test_eight_gpus_by_brute_force() -> None:
    result = search(GIVEN, 8, H100)
    legal, powers = [], (1, 2, 4, 8)
    for t, p, c, v, size in product(powers, powers, powers, (1, 2, 4, 8, 16, 32), powers):
        sizes = {"tensor_model_parallel_size": t, "pipeline_model_parallel_size": p}
        sizes |= {"context_parallel_size": c, "virtual_pipeline_model_parallel_size": v if v > 1 else None}
        parallel = ParallelSection(**sizes, sequence_parallel=t > 1, use_distributed_optimizer=True)
        train = GIVEN.train.model_copy(update={"micro_batch_size": size})
        config = GIVEN.model_copy(update={"parallel": parallel, "train": train})
        try:
            check_experiment(config, 8)
        except ConfigError:
            continue
        legal.append(PlannedRun(config, 8))
    even = {run.name.partition(" recompute")[0] for run in found_runs(result) if "head" not in run.name}
    assert even == {run.name for run in legal}
    fitting = [run for run in legal if peak_memory(run).gib <= 0.9 * 79.6]
    best = min(fitting, key=lambda run: step_time(run, H100).total)
    assert result.plans[0].run.name == best.name


def test_plans_fit_in_order_and_recompute_only_if_needed() -> None:
    given = given_config(load_shape("llama3.1-405b"), [], seq_length=8192, global_batch_size=1024)
    result = search(given, 2048, H100, limit_gib=64)
    assert all(plan.memory.gib <= 64 and sum(plan.run.layers) == 126 for plan in result.plans)
    assert all(memory.gib > 64 for _, memory in result.misfits)
    totals = [plan.time.total for plan in result.plans]
    assert totals == sorted(totals)
    for config in (plan.run.config for plan in result.plans if plan.run.recompute):
        kept = {"recompute_granularity": None, "recompute_modules": ()}
        parallel = config.parallel.model_copy(update=kept)
        assert peak_memory(PlannedRun(config.model_copy(update={"parallel": parallel}), 2048)).gib > 64


BY_LAYERS = {"model.num_layers is not divisible by pipeline x virtual pipeline size"}
SEQUENCE = ("2 x context_parallel_size", "tensor x context size")
BATCH_SIZE = "train.global_batch_size"
EVERY = BY_LAYERS | {f"train.seq_length is not divisible by {size}" for size in SEQUENCE}
EVERY |= {f"{BATCH_SIZE} is not divisible by train.micro_batch_size x data parallel size"}
EVERY |= {f"{BATCH_SIZE} in microbatches is not divisible by parallel.pipeline_model_parallel_size"}


@pytest.mark.parametrize(("gpus", "reasons"), [(1, set()), (7, BY_LAYERS), (24, EVERY), (72, EVERY)])
def test_every_layout_uses_all_gpus_and_refusals_are_counted(gpus: int, reasons: set[str]) -> None:
    longer = load_shape("llama3.1-8b")
    result = search(given_config(longer, [], seq_length=8196, global_batch_size=504), gpus, H100)
    assert {run.tensor * run.stages * run.replicas for run in found_runs(result)} == {gpus}
    assert set(result.refused) == reasons


def test_the_closest_miss_is_reported_if_nothing_fits() -> None:
    result = search(given_config(load_shape("llama3-70b"), [], **BATCH), 8, H100)
    run, memory = result.misfits[0]
    excess = f"{memory.gib - 0.9 * 79.6:.1f} GiB too much on pipeline stage {memory.stage}"
    assert not result.plans
    lines = [*describe(result, train_tokens=1e12, top=3)]
    assert f"  closest miss: {run.name}: {excess}, most of it optimizer" in lines


@pytest.mark.parametrize(
    ("recipe", "capability", "message"),
    [
        ("delayed", (8, 0), "precision.fp8: this GPU has no FP8 products"),
        ("blockwise", (10, 0), "take mxfp8 on Blackwell"),
        ("blockwise", (8, 9), "blockwise is for Hopper"),
        ("mxfp8", (9, 0), "take blockwise on Hopper"),
    ],
)
def test_recipes_are_refused_on_gpus_without_them(
    recipe: str, capability: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_recipe(recipe, capability)
    for other, card in ((None, (8, 0)), ("tensorwise", (8, 9)), ("blockwise", (9, 0)), ("mxfp8", (10, 0))):
        check_recipe(other, card)
    with pytest.raises(ConfigError, match="mxfp8 needs Blackwell"):
        search(given_config(SHAPE, SCALED.split(), **BATCH), 8, H100)


def test_the_memory_of_a_run_is_reported() -> None:
    config = planned_8b(cp=2).config
    # 2 + 4 bytes a parameter, 12/64 of the optimizer, 32 layers of 4096 tokens, 6 bytes a logit.
    expected = PARAMETERS * (6 + 12 / 64) + 32 * 4096 * 149_632 + 6 * 4096 * 128256
    assert check_memory(config, 64, memory_gib=79.6).startswith(
        f"predicted {expected / 2**30:.1f} of 79.6 GiB on pipeline stage 0 (gradients 29.9,"
    )
    whole = planned_8b("parallel.use_distributed_optimizer=false", cp=2).config
    with pytest.raises(ConfigError, match=r"predicted 155\.8 of 79.6 GiB .* do not fit; lower train.micro"):
        check_memory(whole, 8, memory_gib=79.6)


def test_nothing_is_fused_with_local_layers() -> None:
    config = planned_8b("parallel.cross_entropy_loss_fusion=true", tp=2, pp=2, vp=4).config
    fused, plain = PlannedRun(config, 16), PlannedRun(config, 16, fused=False)
    assert fused.name == plain.name == "TP2 PP2x4 CP1 DP4 MBS1"
    assert (fused.loss_fusion, fused.accumulated_bytes) == ("te", 0)
    assert (plain.loss_fusion, plain.accumulated_bytes) == (None, 10)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision.fp8=e4m3", "fp8 needs fp8_recipe"),
        ("precision.fp8_recipes=blockwise", "unknown key; did you mean 'fp8_recipe'"),
        ("parallel.grad_reduce_in_fp32=0", "grad_reduce_in_fp32: expected true or false, found 0"),
        ("parallel.tensor_model_parallel_size=2", "not a setting of a search; take one of precision"),
        ("optimizer.lr=1e-4", "not a setting of a search"),
        (f"{SMALL[0]} parallel.use_distributed_optimizer=false", "needs parallel.use_distributed_optimizer"),
    ],
)
def test_overrides_that_a_search_ignores_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        given_config(SHAPE, override.split(), **BATCH)


def test_a_sequence_that_the_model_has_no_positions_for_is_refused() -> None:
    for name, longest in (("llama2-7b", 4096), ("llama3-8b", 8192)):  # of their config.json
        given_config(load_shape(name), [], seq_length=longest, global_batch_size=8)
        with pytest.raises(ConfigError, match=f"train.seq_length: {longest + 8} is above {longest}, the"):
            given_config(load_shape(name), [], seq_length=longest + 8, global_batch_size=8)


UNUSUAL = " ".join(SMALL_MOMENTS) + (
    " optimizer.main_params_dtype=fp16 parallel.tp_comm_overlap=true parallel.grad_reduce_in_fp32=false "
    "parallel.gradient_accumulation_fusion=false parallel.cross_entropy_loss_fusion=true"
)
DELAYED = "precision.fp8=hybrid precision.fp8_recipe=delayed"
SPARED = " ".join((DELAYED.replace("delayed", "tensorwise"), *bf16_ends(2, 4)))
BLOCKS = "precision.fp8=e4m3 precision.fp8_recipe=blockwise precision.fp8_param_gather=true"
SCALED = BLOCKS.replace("blockwise", "mxfp8")


@pytest.mark.parametrize("overrides", ["", UNUSUAL, DELAYED, SPARED, BLOCKS, SCALED])
def test_printed_settings_reproduce_the_planned_layout(overrides: str) -> None:
    given = given_config(SHAPE, overrides.split(), **BATCH)
    found = search(given, 16, load_machine("b200" if "mxfp8" in overrides else "h100"), limit_gib=71.6)
    kinds = {}  # one of each kind, the fastest; some layouts must recompute
    for run in (plan.run for plan in found.plans):
        kinds.setdefault((run.recompute, run.config.parallel.has_uneven_stages, run.virtual > 1), run)
    assert {kind[0] for kind in kinds} == {None, "mlp", "full"}
    assert {kind[1] for kind in kinds} == {False, True}
    for run in [*kinds.values(), *(plan.run for plan in found.plans[:20])]:
        plain = given_config(SHAPE, [], **BATCH).model_dump(mode="json") | {"model": None}
        printed = build_config(plain, ExperimentConfig, settings(run.config), "run")
        printed = printed.model_copy(update={"model": SHAPE})
        check_experiment(printed, 16)
        assert printed == run.config


def test_the_command_shows_days_and_gpu_hours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*BLOCKS.split(), "--gpus", "8", "--seq-length", "8192", "--global-batch-size", "128"]
    monkeypatch.setattr("sys.argv", ["plan", "llama3-8b", *words, "--train-tokens", "1e12"])
    monkeypatch.setenv("COLUMNS", "140")
    main("plan")
    text = capsys.readouterr().out
    result = search(given_config(SHAPE, BLOCKS.split(), **BATCH), 8, H100)
    best = result.plans[0]
    hours = 1e12 / (128 * 8192) * best.time.total / 3600
    row = next(line for line in text.splitlines() if best.run.name in line)
    assert {f"{hours / 24:.2f}", f"{8 * hours:,.0f}"} <= {*row.replace("│", " ").split()}
    assert f"{len(result.plans)} layouts fit, {len(result.misfits)} do not." in text
    assert "8.03 B parameters, 51.5 GFLOP a token at length 8,192 with causal attention (57.9 " in text
    assert "FP8 casts" in text
    assert "precision.fp8_recipe=blockwise" in text
