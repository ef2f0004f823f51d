"""Step time on ideal machines, where every term can be worked out by hand, and the fitted constants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from megatron_mathcpt.planner.layout import Layout, Precision, Recompute, Training
from megatron_mathcpt.planner.machine import Constants, Hardware, Machine, load_machine
from megatron_mathcpt.planner.shapes import flops_per_token, load_shape
from megatron_mathcpt.planner.step_time import step_time
from tests.benchmarks.planner_calibration import errors, fit, leave_one_family_out
from tests.benchmarks.planner_published import MEASURED, PUBLISHED, Gain, Measured, load_runs

SHAPE = load_shape("llama3-8b")
TRAINING = Training(seq_length=8192, global_batch_size=128)
# Memory and links so fast that only operations count, at the data sheet's peak.
FREE = dict.fromkeys(("memory_gb_per_second", "nvlink_gb_per_second", "network_gb_per_second"), 1e15)
CARD = {"bf16_tflops": 1000.0, "fp8_tflops": 2000.0, "memory_gib": 80.0, "gpus_per_node": 8, **FREE}
COSTS = ("_ramp", "_loss", "_sync", "_us", "_ms")  # the rest are shares of a peak
CONSTANTS = {name: 0.0 if name.endswith(COSTS) else 1.0 for name in Constants.model_fields}
IDEAL = Machine(
    Hardware(**CARD, capability=(9, 0), tuned_overlap=(), source="made up"), Constants(**CONSTANTS)
)
# The same with memory of 1 GB/s, so that moved bytes can be told in seconds.
SLOW = replace(IDEAL, hardware=IDEAL.hardware.model_copy(update={"memory_gb_per_second": 1.0}))
ONE = Training(seq_length=8192, global_batch_size=1)
ALONE = Layout()
PARAMETERS = 8_030_261_248
LAYER = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336  # weights of one layer's matrices
HEAD_SECONDS = 6 * 8192 * 4096 * 128256 / 1e15  # of a sequence, at the ideal machine's peak


def terms(machine: Machine = SLOW, layout: Layout = ALONE, **change: Any) -> Mapping[str, float]:
    """Terms of a step of one sequence on one GPU, but for what is given."""
    return step_time(SHAPE, replace(ONE, **change), layout, machine).terms


def with_hardware(**change: float) -> Machine:
    return replace(IDEAL, hardware=IDEAL.hardware.model_copy(update=change))


def with_constant(name: str, value: float) -> Machine:
    return replace(IDEAL, constants=IDEAL.constants.model_copy(update={name: value}))


def test_an_ideal_machine_runs_at_its_peak() -> None:
    eight = Layout(data_parallel_size=8)
    time = step_time(SHAPE, TRAINING, eight, IDEAL).total
    assert time == pytest.approx(128 * 8192 * flops_per_token(SHAPE, 8192).causal / 8 / 1e15, rel=1e-6)
    fp8 = step_time(SHAPE, replace(TRAINING, precision="fp8_current"), eight, IDEAL).total
    assert time - fp8 == pytest.approx(128 * 8192 * 6 * 32 * LAYER / 8 / 1e15 / 2, rel=1e-6)
    # Cutting a model costs nothing when traffic is free.
    cut = Layout(tensor_model_parallel_size=4, context_parallel_size=2)
    assert step_time(SHAPE, TRAINING, cut, IDEAL).total == pytest.approx(time, rel=1e-6)


@pytest.mark.parametrize("virtual", [1, 4])
def test_bubble_and_slowest_stage_by_hand(virtual: int) -> None:
    layout = Layout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=virtual)
    time = step_time(SHAPE, TRAINING, layout, IDEAL)
    layer = 8192 * 6 * (LAYER + 8192 * 4096) / 1e15
    head = HEAD_SECONDS
    assert time.stages == pytest.approx((8 * layer,) * 3 + (8 * layer + head,), rel=1e-6)
    assert time.terms["pipeline bubble"] == pytest.approx(3 / virtual * (32 * layer + head) / 4, rel=1e-6)
    assert time.total == pytest.approx(128 * (8 * layer + head) + time.terms["pipeline bubble"], rel=1e-6)


def test_a_ramp_is_more_of_the_reduction() -> None:
    small = dict.fromkeys(("hidden_size", "ffn_hidden_size", "vocab_size"), 512)
    heads = {"num_attention_heads": 4, "num_query_groups": 4, "kv_channels": 128}
    tiny = SHAPE.model_copy(update={"num_layers": 1, "gated_linear_unit": False, **small, **heads})
    training = Training(seq_length=512, global_batch_size=1, attended_length=1)
    plain = step_time(tiny, training, Layout(), IDEAL).terms["matrix products"]
    longer = step_time(tiny, training, Layout(), with_constant("bf16_gemm_ramp", 512)).terms
    # Of the qkv matrix' three products the input gradient reduces over 1536, so gains only a third.
    products = 2 * 512**3 / 1e15
    assert plain == pytest.approx(3 * (3 + 1 + 1 + 1) * products, rel=1e-6)
    assert longer["matrix products"] - plain == pytest.approx((2 * 3 + 1 + 9) * products, rel=1e-6)


def test_data_parallel_traffic_by_hand() -> None:
    # 16 GPUs, one per node share of the network: 8 of a group sit on a node and use its 8 cards together.
    machine = with_hardware(network_gb_per_second=50.0, nvlink_gb_per_second=450.0)
    one_microbatch = replace(TRAINING, global_batch_size=16)
    time = step_time(SHAPE, one_microbatch, Layout(data_parallel_size=16), machine)
    sent = 4 * PARAMETERS * 15 / 16 / 400e9
    window = 0.9 * time.stages[0]
    assert time.terms["gradient reduction"] == pytest.approx(max(0.05 * sent, sent - window * 2 / 3))
    assert time.terms["parameter gather"] == pytest.approx(max(0.05 * sent / 2, sent / 2 - window / 3))


def test_tensor_parallel_traffic_by_hand() -> None:
    found = terms(with_hardware(nvlink_gb_per_second=450.0), Layout(8))["tensor-parallel communication"]
    # 10 collectives of 8192 x 4096 bf16 values a layer, 7/8 of each travel.
    assert found == pytest.approx(32 * 10 * 2 * 8192 * 4096 * 7 / 8 / 450e9)


def test_unfused_gradient_accumulation_by_hand() -> None:
    fused, found = terms(), terms(gradient_accumulation_fusion=False)
    assert fused["gradient accumulation"] == 0
    # A bf16 gradient is read, and added to an fp32 one that is read and written: 10 bytes a weight.
    assert found["gradient accumulation"] == pytest.approx(32 * 10 * LAYER / 1e9)
    assert found["head and loss"] - fused["head and loss"] == pytest.approx(10 * 4096 * 128256 / 1e9)
    smaller = terms(gradient_accumulation_fusion=False, grad_reduce_in_fp32=False)
    assert smaller["gradient accumulation"] == pytest.approx(32 * 6 * LAYER / 1e9)


@pytest.mark.parametrize(("impl", "moved"), [(None, 52), ("native", 16), ("te", 10)])
def test_bytes_that_the_loss_moves(impl: Literal["native", "te"] | None, moved: int) -> None:
    found = terms(cross_entropy_fusion_impl=impl)["head and loss"]
    assert found == pytest.approx(HEAD_SECONDS + moved * 8192 * 128256 / 1e9)


@pytest.mark.parametrize(
    ("precision", "moved"),
    [
        # Outputs of attention (4096) and of the unit (14336); gradients of the four products' outputs (6144,
        # 4096, 28672, 4096): 61440 values in all.
        ("fp8_delayed", (2 + 2) * 61440),
        # Read twice; two norm outputs cast apart; the attention output read twice more in backward.
        ("fp8_current", (4 + 2) * 61440 + (2 + 2) * 8192 + 4 * 4096),
        ("fp8_blockwise", (2 + 2 + 8 / 128) * (61440 + 8192) + 2 * 4096),
        ("fp8_mx", (2 + 2 + 2 / 32) * (61440 + 8192) + 2 * 4096),
        ("bf16", 0),
    ],
)
def test_bytes_that_casts_move(precision: Precision, moved: float) -> None:
    found = terms(precision=precision)["FP8 casts"]
    assert found == pytest.approx(32 * 8192 * moved / 1e9)


def test_products_scaled_by_blocks_run_at_their_share() -> None:
    half = with_constant("block_gemm_share", 0.5)
    kinds: tuple[Precision, ...] = ("bf16", "fp8_current", "fp8_blockwise", "fp8_mx")
    bf16, tensor, blocks, _ = (terms(half, precision=precision)["matrix products"] for precision in kinds)
    assert tensor == pytest.approx(bf16 / 2)
    assert blocks == pytest.approx(bf16)
    # Only current scaling joins maxima over the tensor-parallel ranks: four a layer and microbatch.
    slow, two = with_constant("maximum_us", 1e6), Layout(tensor_model_parallel_size=2)
    waits = [terms(slow, two, precision=kind)["tensor-parallel communication"] for kind in kinds[1:]]
    assert waits == pytest.approx([4 * 32, 0, 0])


def test_layers_left_in_bf16_take_their_time() -> None:
    fp8 = replace(ONE, precision="fp8_current")
    bf16, plain, mixed = (
        step_time(SHAPE, some, Layout(pipeline_model_parallel_size=2), IDEAL).stages
        for some in (ONE, fp8, replace(fp8, bf16_layers=(4, 2)))
    )
    # The head is in bf16 anyway.
    for stage, (share, head) in enumerate(((4 / 16, 0), (2 / 16, HEAD_SECONDS))):
        layers = (1 - share) * (plain[stage] - head) + share * (bf16[stage] - head)
        assert mixed[stage] - head == pytest.approx(layers)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        # Gradient for norm and for AdamW, 12 bytes of state read and written, the weight.
        ({}, 4 + 4 + 24 + 2),
        # A bf16 gradient is read, its fp32 copy written, and read twice.
        ({"grad_reduce_in_fp32": False}, 2 + 4 + 8 + 24 + 2),
        ({"grad_reduce_in_fp32": False, "use_precision_aware_optimizer": True}, 2 + 2 + 20 + 2),
    ],
)
def test_bytes_that_the_optimizer_moves(change: dict[str, Any], moved: int) -> None:
    found = terms(layout=Layout(data_parallel_size=4), global_batch_size=4, **change)["optimizer"]
    assert found == pytest.approx(moved * PARAMETERS / 4 / 1e9)


def test_gradients_in_bf16_are_half_the_traffic_and_fp8_weights_less() -> None:
    layout, slow = Layout(data_parallel_size=2), with_hardware(nvlink_gb_per_second=1.0)

    def traffic(**change: Any) -> tuple[float, float]:
        found = terms(slow, layout, global_batch_size=128, **change)
        return found["gradient reduction"], found["parameter gather"]

    window = 0.9 * step_time(SHAPE, TRAINING, layout, slow).stages[0]
    sent = PARAMETERS / 2 / 1e9  # half of the parameters, at 1 GB/s
    assert traffic()[0] == pytest.approx(4 * sent - window * 2 / 3)
    assert traffic(grad_reduce_in_fp32=False)[0] == pytest.approx(2 * sent - window * 2 / 3)
    for precision, saved in (("fp8_blockwise", 32 * LAYER / 2 / 1e9), ("fp8_mx", 0.0)):
        plain = traffic(precision=precision)[1]
        assert plain - traffic(precision=precision, fp8_parameters=True)[1] == pytest.approx(saved)


@pytest.mark.parametrize(("recompute", "share"), [("none", 0), ("mlp", 0.25), ("full", 1 / 3)])
def test_recomputation_by_hand(recompute: Recompute, share: float) -> None:
    found = terms(IDEAL, Layout(recompute=recompute))
    attention = found["attention"] / 3.5 if recompute == "full" else 0.0
    assert found["recomputation"] == pytest.approx(share * found["matrix products"] + attention)


def test_shipped_constants_are_the_fit_to_the_newest_editions() -> None:
    pytest.importorskip("scipy")
    every = [run for run in load_runs() if run.group.hardware == "h100"]
    assert np.abs(errors(every, load_machine("h100"))).max() < 0.15
    runs = [run for run in every if run.is_newest]
    assert {run.group.edition for run in runs if run.key.startswith("llama3-8b bf16 TP1 PP1 CP2")} == {
        "25.04.02"
    }
    fitted = fit(runs).constants.model_dump()
    assert load_machine("h100").constants.model_dump() == pytest.approx(fitted, rel=5e-3)
    outside = np.abs(leave_one_family_out(runs))
    assert np.median(outside) < 0.035
    assert outside.max() < 0.10


def test_constants_carry_to_another_gpu() -> None:
    runs = [run for run in load_runs() if run.group.hardware == "b200"]
    assert {run.training.precision for run in runs} == {"fp8_current", "fp8_mx"}
    for run, error in zip(runs, errors(runs, load_machine("b200")), strict=True):
        assert abs(error) < (0.17 if run.training.precision == "fp8_mx" else 0.12)


@pytest.mark.parametrize("gain", PUBLISHED.gains, ids=lambda gain: gain.name)
def test_published_gains_of_fp8_in_continued_pretraining(gain: Gain) -> None:
    (speed, memory), (found_speed, found_memory) = gain.published, gain.predict(load_machine("h100"))
    assert found_speed == pytest.approx(speed, rel=0.10)
    assert found_memory == pytest.approx(memory, rel=0.07)


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: run.name)
def test_what_this_project_measured_is_near(run: Measured) -> None:
    seconds, gib = run.predict(load_machine(run.hardware).constants)
    assert -0.10 < seconds / run.seconds - 1 < 0.03
    assert gib == pytest.approx(run.peak_gib, rel=0.03)
