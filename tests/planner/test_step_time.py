"""Step time on ideal machines, where every term can be calculated by hand, and the fitted constants."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from megatron_mathcpt.planner.machine import Constants, Hardware, Machine, load_machine
from megatron_mathcpt.planner.shapes import flops_per_token
from megatron_mathcpt.planner.step_time import step_time
from tests.benchmarks.planner_calibration import errors, fit, leave_one_family_out
from tests.benchmarks.planner_published import MEASURED, PUBLISHED, Gain, Measured, load_times
from tests.support.planned_runs import LAYER, PARAMETERS, SHAPE, SMALL, bf16_ends, planned_8b

CARD = {"bf16_tflops": 1000.0, "fp8_tflops": 2000.0, "memory_gib": 80.0, "gpus_per_node": 8}
CARD |= {"capability": (9, 0), "tuned_overlap": (), "source": "made up"}
COSTS = ("_ramp", "_loss", "_sync", "_us", "_ms")  # the rest are shares of a peak
LAYERS = 32 * LAYER
HEAD_SECONDS = 6 * 8192 * 4096 * 128256 / 1e15  # of a sequence, at the ideal machine's peak


def machine(**change: float) -> Machine:
    """Return a machine on which only FLOPs take time, except for given bandwidths in GB/s and constants."""
    bandwidths = dict.fromkeys(("memory", "nvlink", "network"), 1e15)
    rates = {f"{name}_gb_per_second": change.pop(name, value) for name, value in bandwidths.items()}
    constants = {name: 0.0 if name.endswith(COSTS) else 1.0 for name in Constants.model_fields}
    return Machine(Hardware(**CARD, **rates), Constants(**constants | change))


IDEAL, SLOW = machine(), machine(memory=1.0)  # with SLOW a moved byte takes a nanosecond


def terms(*overrides: str, on: Machine = SLOW, **fields: Any) -> Mapping[str, float]:
    """Return the terms of a step of one sequence on one GPU, unless given otherwise."""
    return step_time(planned_8b(*overrides, **{"global_batch_size": 1} | fields), on).terms


def test_an_ideal_machine_runs_at_its_peak() -> None:
    time = step_time(planned_8b(dp=8), IDEAL).total
    assert time == pytest.approx(128 * 8192 * flops_per_token(SHAPE, 8192).causal / 8 / 1e15, rel=1e-6)
    fp8 = step_time(planned_8b(dp=8, precision="tensorwise"), IDEAL).total
    assert time - fp8 == pytest.approx(128 * 8192 * 6 * LAYERS / 8 / 1e15 / 2, rel=1e-6)
    # Cutting a model costs nothing when traffic is free.
    assert step_time(planned_8b(tp=4, cp=2), IDEAL).total == pytest.approx(time, rel=1e-6)


@pytest.mark.parametrize("virtual", [1, 4])
def test_bubble_and_slowest_stage_by_hand(virtual: int) -> None:
    time = step_time(planned_8b(pp=4, vp=virtual), IDEAL)
    layer, head = 8192 * 6 * (LAYER + 8192 * 4096) / 1e15, HEAD_SECONDS
    assert time.stages == pytest.approx((8 * layer,) * 3 + (8 * layer + head,), rel=1e-6)
    assert time.terms["pipeline bubble"] == pytest.approx(3 / virtual * (32 * layer + head) / 4, rel=1e-6)
    assert time.total == pytest.approx(128 * (8 * layer + head) + time.terms["pipeline bubble"], rel=1e-6)


def test_a_ramp_lengthens_the_reduction() -> None:
    small = dict.fromkeys(("hidden_size", "ffn_hidden_size", "vocab_size"), 512)
    heads = {"num_attention_heads": 4, "num_query_groups": 4, "kv_channels": 128}
    shape = SHAPE.model_copy(update={"num_layers": 1, "gated_linear_unit": False, **small, **heads})
    plain, longer = (
        terms(on=on, shape=shape, seq_length=512)["matrix products"]
        for on in (IDEAL, machine(bf16_gemm_ramp=512))
    )
    # Of the qkv matrix' three products the input gradient reduces over 1536, so gains only a third.
    products = 2 * 512**3 / 1e15
    assert plain == pytest.approx(3 * (3 + 1 + 1 + 1) * products, rel=1e-6)
    assert longer - plain == pytest.approx((2 * 3 + 1 + 9) * products, rel=1e-6)


def test_traffic_by_hand() -> None:
    # 16 GPUs, one per node share of the network: 8 of a group sit on a node and use its 8 cards together.
    linked = machine(network=50.0, nvlink=450.0)
    time = step_time(planned_8b(dp=16, global_batch_size=16), linked)
    sent, window = 4 * PARAMETERS * 15 / 16 / 400e9, 0.9 * time.stages[0]
    assert time.terms["gradient reduction"] == pytest.approx(max(0.05 * sent, sent - window * 2 / 3))
    assert time.terms["parameter gather"] == pytest.approx(max(0.05 * sent / 2, sent / 2 - window / 3))
    # 10 collectives of 8192 x 4096 bf16 values a layer, 7/8 of each travel.
    found = terms(on=linked, tp=8)["tensor-parallel communication"]
    assert found == pytest.approx(32 * 10 * 2 * 8192 * 4096 * 7 / 8 / 450e9)


def test_gradients_in_bf16_are_half_the_traffic_and_fp8_weights_less() -> None:
    slow = machine(nvlink=1.0)

    def traffic(**fields: Any) -> tuple[float, float]:
        found = terms(on=slow, dp=2, global_batch_size=128, **fields)
        return found["gradient reduction"], found["parameter gather"]

    window = 0.9 * step_time(planned_8b(dp=2), slow).stages[0]
    sent = PARAMETERS / 2 / 1e9  # half of the parameters, at 1 GB/s
    assert traffic()[0] == pytest.approx(4 * sent - window * 2 / 3)
    assert traffic(grad_reduce_in_fp32=False)[0] == pytest.approx(2 * sent - window * 2 / 3)
    for precision, saved in (("blockwise", LAYERS / 2 / 1e9), ("mxfp8", 0.0)):
        plain = traffic(precision=precision)[1]
        assert plain - traffic(precision=precision, fp8_parameters=True)[1] == pytest.approx(saved)


LOSSES = {None: 52, "native": 16, "te": 10}  # bytes of a logit
CASTS = {
    # Outputs of attention (4096) and of the unit (14336); gradients of the four products' outputs (6144,
    # 4096, 28672, 4096): 61440 values in all.
    "delayed": (2 + 2) * 61440,
    # Read twice; two norm outputs cast apart; the attention output read twice more in backward.
    "tensorwise": (4 + 2) * 61440 + (2 + 2) * 8192 + 4 * 4096,
    "blockwise": (2 + 2 + 8 / 128) * (61440 + 8192) + 2 * 4096,
    "mxfp8": (2 + 2 + 2 / 32) * (61440 + 8192) + 2 * 4096,
    "bf16": 0,
}
UNFUSED = ("parallel.gradient_accumulation_fusion=false",)
BF16_SUMS = {"grad_reduce_in_fp32": False}
LOGITS = 8192 * 128256


@pytest.mark.parametrize(
    ("term", "overrides", "fields", "moved"),
    [
        *(("head and loss", (), {"loss_fusion": loss}, size * LOGITS) for loss, size in LOSSES.items()),
        # A bf16 gradient is read, and added to an fp32 one that is read and written: 10 bytes a weight.
        ("head and loss", UNFUSED, {}, 52 * LOGITS + 10 * 4096 * 128256),
        ("gradient accumulation", (), {}, 0),
        ("gradient accumulation", UNFUSED, {}, 10 * LAYERS),
        ("gradient accumulation", UNFUSED, BF16_SUMS, 6 * LAYERS),
        *(("FP8 casts", (), {"precision": kind}, 32 * 8192 * size) for kind, size in CASTS.items()),
        # Gradient for norm and for AdamW, 12 bytes of state read and written, the weight.
        ("optimizer", (), {}, (4 + 4 + 24 + 2) * PARAMETERS),
        ("optimizer", (), {"dp": 4, "global_batch_size": 4}, (4 + 4 + 24 + 2) * PARAMETERS / 4),
        # A bf16 gradient is read, its fp32 copy written, and read twice.
        ("optimizer", (), BF16_SUMS, (2 + 4 + 8 + 24 + 2) * PARAMETERS),
        ("optimizer", SMALL, BF16_SUMS, (2 + 2 + 20 + 2) * PARAMETERS),
    ],
)
def test_bytes_moved_by_hand(
    term: str, overrides: tuple[str, ...], fields: dict[str, Any], moved: float
) -> None:
    products = HEAD_SECONDS if term == "head and loss" else 0.0
    assert terms(*overrides, **fields)[term] == pytest.approx(products + moved / 1e9)


def test_products_scaled_by_blocks_run_at_their_share() -> None:
    half, kinds = machine(block_gemm_share=0.5), ("bf16", "tensorwise", "blockwise", "mxfp8")
    bf16, *fp8 = (terms(on=half, precision=kind)["matrix products"] for kind in kinds)
    assert fp8[:2] == pytest.approx([bf16 / 2, bf16])
    # Only current scaling joins maxima over the tensor-parallel ranks: four a layer and microbatch.
    waiting = machine(maximum_us=1e6)
    waits = [terms(on=waiting, tp=2, precision=kind)["tensor-parallel communication"] for kind in kinds[1:]]
    assert waits == pytest.approx([4 * 32, 0, 0])


def test_layers_left_in_bf16_take_the_time_of_bf16() -> None:
    fp8 = {"pp": 2, "precision": "tensorwise"}
    runs = planned_8b(pp=2), planned_8b(**fp8), planned_8b(*bf16_ends(4, 2), **fp8)
    bf16, plain, mixed = (step_time(run, IDEAL).stages for run in runs)
    # The head is in bf16 anyway.
    for stage, (share, head) in enumerate(((4 / 16, 0), (2 / 16, HEAD_SECONDS))):
        layers = (1 - share) * (plain[stage] - head) + share * (bf16[stage] - head)
        assert mixed[stage] - head == pytest.approx(layers)


@pytest.mark.parametrize(("recompute", "share"), [(None, 0), ("mlp", 0.25), ("full", 1 / 3)])
def test_recomputation_by_hand(recompute: str | None, share: float) -> None:
    found = terms(on=IDEAL, recompute=recompute)
    attention = found["attention"] / 3.5 if recompute == "full" else 0.0
    assert found["recomputation"] == pytest.approx(share * found["matrix products"] + attention)


def test_shipped_constants_are_the_fit_to_the_newest_editions() -> None:
    pytest.importorskip("scipy")
    every = [row for row in load_times() if row.group.hardware == "h100"]
    assert np.abs(errors(every, load_machine("h100"))).max() < 0.15
    newest = [row for row in every if row.is_newest]
    series = [row.group.edition for row in newest if row.key.startswith("llama3-8b bf16 TP1 PP1 CP2")]
    assert {*series} == {"25.04.02"}
    fitted = fit(newest).constants.model_dump()
    assert load_machine("h100").constants.model_dump() == pytest.approx(fitted, rel=5e-3)
    outside = np.abs(leave_one_family_out(newest))
    assert np.median(outside) < 0.035
    assert outside.max() < 0.10


def test_constants_carry_to_another_gpu() -> None:
    rows = [row for row in load_times() if row.group.hardware == "b200"]
    allowed = {"tensorwise": 0.12, "mxfp8": 0.17}
    assert {row.group.precision for row in rows} == set(allowed)
    for row, error in zip(rows, errors(rows, load_machine("b200")), strict=True):
        assert abs(error) < allowed[row.group.precision]


@pytest.mark.parametrize("gain", PUBLISHED.gains, ids=lambda gain: gain.name)
def test_published_gains_of_fp8_in_continued_pretraining(gain: Gain) -> None:
    speed, memory = gain.predict(load_machine("h100"))
    assert speed == pytest.approx(gain.published[0], rel=0.10)
    assert memory == pytest.approx(gain.published[1], rel=0.07)


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: run.name)
def test_measured_runs_are_near(run: Measured) -> None:
    seconds, gib = run.predict(load_machine(run.hardware).constants)
    assert -0.10 < seconds / run.seconds - 1 < 0.03
    assert gib == pytest.approx(run.peak_gib, rel=0.03)
