"""Step time on ideal machines, where every term can be worked out by hand, and the fitted constants."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_mathcpt.planner.calibration import errors, fit, leave_one_family_out, load_priors
from megatron_mathcpt.planner.constants import Constants, load_constants
from megatron_mathcpt.planner.flops import flops_per_token
from megatron_mathcpt.planner.hardware import Hardware
from megatron_mathcpt.planner.layout import Layout, Training
from megatron_mathcpt.planner.machine import Machine, load_machine
from megatron_mathcpt.planner.published import load_runs
from megatron_mathcpt.planner.shapes import load_shape
from megatron_mathcpt.planner.step_time import step_time

SHAPE = load_shape("llama3-8b")
TRAINING = Training(seq_length=8192, global_batch_size=128)
# Memory and links so fast that only operations count, at the data sheet's peak.
IDEAL = Machine(
    Hardware(
        bf16_tflops=1000,
        fp8_tflops=2000,
        memory_gib=80,
        memory_gb_per_second=1e15,
        nvlink_gb_per_second=1e15,
        network_gb_per_second=1e15,
        gpus_per_node=8,
        tuned_overlap=(),
        source="made up",
    ),
    Constants(
        bf16_gemm_efficiency=1,
        bf16_gemm_ramp=0,
        fp8_gemm_efficiency=1,
        fp8_gemm_ramp=0,
        attention_efficiency=1,
        context_loss=0,
        memory_efficiency=1,
        tensor_exposed=1,
        pipeline_exposed=1,
        scale_sync=0,
        maximum_us=0,
        layer_overhead_us=0,
        fp8_layer_overhead_us=0,
        step_overhead_ms=0,
        link_efficiency=1,
        network_efficiency=1,
    ),
)


def with_constant(name: str, value: float) -> Machine:
    return replace(IDEAL, constants=IDEAL.constants.model_copy(update={name: value}))


def test_an_ideal_machine_runs_at_its_peak() -> None:
    flops = flops_per_token(SHAPE, 8192)
    time = step_time(SHAPE, TRAINING, Layout(data_parallel_size=8), IDEAL)
    assert time.total == pytest.approx(128 * 8192 * flops.causal / 8 / 1e15, rel=1e-6)
    fp8 = step_time(SHAPE, replace(TRAINING, precision="fp8_current"), Layout(data_parallel_size=8), IDEAL)
    saved = 128 * 8192 * flops.layer_matrices / 8 / 1e15 / 2
    assert time.total - fp8.total == pytest.approx(saved, rel=1e-6)


def test_cutting_a_model_costs_nothing_when_traffic_is_free() -> None:
    time = step_time(SHAPE, TRAINING, Layout(data_parallel_size=8), IDEAL).total
    cut = Layout(tensor_model_parallel_size=4, context_parallel_size=2)
    assert step_time(SHAPE, TRAINING, cut, IDEAL).total == pytest.approx(time, rel=1e-6)


@pytest.mark.parametrize("virtual", [1, 4])
def test_bubble_and_slowest_stage_by_hand(virtual: int) -> None:
    layout = Layout(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=virtual)
    time = step_time(SHAPE, TRAINING, layout, IDEAL)
    flops = flops_per_token(SHAPE, 8192)
    layer = 8192 * (flops.layer_matrices + flops.attention_causal) / 32 / 1e15
    head = 8192 * flops.head / 1e15
    assert time.stages == pytest.approx((8 * layer,) * 3 + (8 * layer + head,), rel=1e-6)
    assert time.terms["pipeline bubble"] == pytest.approx(3 / virtual * (32 * layer + head) / 4, rel=1e-6)
    assert time.total == pytest.approx(128 * (8 * layer + head) + time.terms["pipeline bubble"], rel=1e-6)


def test_a_ramp_is_more_of_the_reduction() -> None:
    # 6 4096 x 4096 products instead of one of each size would be hand-countable; here one factor suffices:
    # with a ramp as long as every reduction each product takes twice as long.
    tiny = replace(SHAPE, num_layers=1, hidden_size=512, ffn_hidden_size=512, num_attention_heads=4)
    tiny = replace(tiny, num_query_groups=4, kv_channels=128, vocab_size=512, gated_linear_unit=False)
    training = Training(seq_length=512, global_batch_size=1, attended_length=1)
    plain = step_time(tiny, training, Layout(), IDEAL).terms["matrix products"]
    longer = step_time(tiny, training, Layout(), with_constant("bf16_gemm_ramp", 512)).terms
    # Of the qkv matrix' three products the input gradient reduces over 1536, so gains only a third.
    products = 2 * 512**3 / 1e15
    assert plain == pytest.approx(3 * (3 + 1 + 1 + 1) * products, rel=1e-6)
    assert longer["matrix products"] - plain == pytest.approx((2 * 3 + 1 + 9) * products, rel=1e-6)


def test_data_parallel_traffic_by_hand() -> None:
    # 16 GPUs, one per node share of the network: 8 of a group sit on a node and use its 8 cards together.
    hardware = IDEAL.hardware.model_copy(
        update={"network_gb_per_second": 50.0, "nvlink_gb_per_second": 450.0}
    )
    machine = replace(IDEAL, hardware=hardware)
    one_microbatch = replace(TRAINING, global_batch_size=16)
    time = step_time(SHAPE, one_microbatch, Layout(data_parallel_size=16), machine)
    sent = 4 * 8_030_261_248 * 15 / 16 / 400e9
    window = 0.9 * time.stages[0]
    assert time.terms["gradient reduction"] == pytest.approx(max(0.05 * sent, sent - window * 2 / 3))
    assert time.terms["parameter gather"] == pytest.approx(max(0.05 * sent / 2, sent / 2 - window / 3))


def test_tensor_parallel_traffic_by_hand() -> None:
    hardware = IDEAL.hardware.model_copy(update={"nvlink_gb_per_second": 450.0})
    layout = Layout(tensor_model_parallel_size=8)
    time = step_time(SHAPE, TRAINING, layout, replace(IDEAL, hardware=hardware))
    # 10 collectives of 8192 x 4096 bf16 values a layer, 7/8 of each travel.
    expected = 128 * 32 * 10 * 2 * 8192 * 4096 * 7 / 8 / 450e9
    assert time.terms["tensor-parallel communication"] == pytest.approx(expected)


def test_terms_add_up_on_a_real_machine() -> None:
    layout = Layout(2, 4, 2, 1, virtual_pipeline_model_parallel_size=2, recompute="full")
    training = replace(TRAINING, precision="fp8_delayed")
    time = step_time(SHAPE, training, layout, load_machine("h100"))
    assert time.total == sum(time.terms.values())
    assert all(seconds >= 0 for seconds in time.terms.values())
    assert time.terms["recomputation"] > 0.2 * time.terms["matrix products"]


def test_shipped_constants_are_the_fit() -> None:
    pytest.importorskip("scipy")
    runs = [run for run in load_runs() if run.is_newest and run.hardware == "h100"]
    fitted = fit(runs, load_priors()).constants.model_dump()
    assert load_constants().model_dump() == pytest.approx(fitted, rel=5e-3)
    outside = np.abs(leave_one_family_out(runs, lambda some: fit(some, load_priors())))
    assert np.median(outside) < 0.035
    assert outside.max() < 0.10


def test_constants_carry_to_another_gpu() -> None:
    runs = [run for run in load_runs() if run.hardware == "b200"]
    assert len(runs) == 2
    assert np.abs(errors(runs, load_machine("b200"))).max() < 0.12


def test_what_does_not_belong_to_the_newest_edition_is_kept_apart() -> None:
    runs = [run for run in load_runs() if run.hardware == "h100"]
    newest = {
        run.edition for run in runs if run.is_newest and run.key.startswith("llama3-8b bf16 TP1 PP1 CP2")
    }
    assert newest == {"25.04.02"}
    assert sum(not run.is_newest for run in runs) > 50
    assert np.abs(errors(runs, load_machine("h100"))).max() < 0.15
