"""Memory and checkpoints by hand, in flight as in Megatron-Core's own schedule, and published peaks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.planner.layout import Layout, Precision, Training, bf16_share, with_head_as_layer
from megatron_mathcpt.planner.memory import (
    checkpoint_bytes,
    held_bytes,
    in_flight_stages,
    kept_bytes,
    memory_per_stage,
    peak_memory,
    saved_per_token,
    stage_parameters,
)
from megatron_mathcpt.planner.shapes import load_shape
from tests.benchmarks.planner_published import PUBLISHED, Peak

SHAPE = load_shape("llama3-8b")
TRAINING = Training(seq_length=8192, global_batch_size=128)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        # 2 norm inputs and 2 outputs of 4096; 4096 + 2 x 1024 mixed; 4096 + 1024 rotated; the attention's
        # output and 32 fp32 sums; gate, up and their product; bf16.
        ("bf16", 2 * (4 * 4096 + 6144 + 5120 + 4096 + 3 * 14336) + 4 * 32),
        # Norm outputs and activation at half; delayed scaling keeps the attention output in one byte more.
        ("fp8_delayed", 149_632 - 2 * 4096 - 14336 + 4096),
        ("fp8_current", 149_632 - 2 * 4096 - 14336),
        # 22528 values of one byte, and a scale of 4 bytes for 128 of them, or of one for 32.
        ("fp8_blockwise", 149_632 - 2 * 22528 + 22528 + 4 * 22528 / 128),
        ("fp8_mx", 149_632 - 2 * 22528 + 22528 + 22528 / 32),
    ],
)
def test_saved_bytes_by_hand(precision: Precision, expected: float) -> None:
    found = saved_per_token(SHAPE, replace(TRAINING, precision=precision), Layout())
    assert sum(found.values()) == expected


FP8_WEIGHTS = {"precision": "fp8_delayed", "fp8_parameters": True}
MATRICES = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
OTHERS = 8_030_261_248 - MATRICES


@pytest.mark.parametrize(
    ("precision", "copies"),
    [
        ("bf16", 0),
        ("fp8_delayed", 2),
        ("fp8_current", 2),
        # Two copies, each with an fp32 scale for 128 x 128 weights, or a byte for 32.
        ("fp8_blockwise", 2 + 2 * 4 / 16384),
        ("fp8_mx", 2 + 2 / 32),
    ],
)
def test_weights_by_hand(precision: Precision, copies: float) -> None:
    training = replace(TRAINING, precision=precision)
    (stage,) = memory_per_stage(SHAPE, training, Layout())
    assert stage.parts["weights"] == pytest.approx((2 + copies) * MATRICES + 2 * OTHERS, rel=1e-12)
    (stage,) = memory_per_stage(SHAPE, replace(training, fp8_parameters=True), Layout())
    assert stage.parts["weights"] == pytest.approx((copies or 2) * MATRICES + 2 * OTHERS, rel=1e-12)


def test_layers_left_in_bf16_weigh_what_they_weigh_in_bf16() -> None:
    layout = Layout(pipeline_model_parallel_size=4)
    fp8 = replace(TRAINING, precision="fp8_current", fp8_parameters=True)
    plain, mixed = (
        memory_per_stage(SHAPE, training, layout) for training in (fp8, replace(fp8, bf16_layers=(1, 3)))
    )
    bf16 = memory_per_stage(SHAPE, replace(TRAINING, precision="bf16"), layout)
    for part in ("weights", "activations"):
        # One of eight layers of the first stage, three of the last.
        for stage, count in enumerate((1, 0, 0, 3)):
            expected = (8 - count) * plain[stage].parts[part] + count * bf16[stage].parts[part]
            assert mixed[stage].parts[part] == pytest.approx(expected / 8)
    for ends, shares in (((10, 32), [1, 1, 1, 1]), ((10, 0), [1, 0.25, 0, 0])):
        training = replace(fp8, bf16_layers=ends)
        assert [bf16_share(SHAPE, training, layout, stage) for stage in range(4)] == shares


@pytest.mark.parametrize(("impl", "size"), [(None, 6), ("native", 12), ("te", 2)])
def test_bytes_of_a_logit(impl: Literal["native", "te"] | None, size: int) -> None:
    (stage,) = memory_per_stage(SHAPE, replace(TRAINING, cross_entropy_fusion_impl=impl), Layout())
    assert stage.parts["logits"] == size * 8192 * 128256


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 4 + 4 + 4),
        # The lower half of each master; the upper one is the bf16 weight.
        ({"use_precision_aware_optimizer": True}, 2 + 4 + 4),
        ({"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16"}, 2 + 2 + 4),
        ({"use_precision_aware_optimizer": True, "main_params_dtype": "fp16"}, 2 + 4 + 4),
        # Megatron-Core keeps the masters beside blockwise FP8, Transformer Engine beside delayed scaling.
        ({"use_precision_aware_optimizer": True, "precision": "fp8_blockwise"}, 4 + 4 + 4),
        ({"use_precision_aware_optimizer": True, "precision": "fp8_delayed"}, 2 + 4 + 4),
        ({"use_precision_aware_optimizer": True, **FP8_WEIGHTS}, 4 + 4 + 4),
        ({"precision": "fp32"}, 4 + 4),
    ],
)
def test_bytes_of_the_optimizer_by_hand(change: dict[str, Any], expected: int) -> None:
    (stage,) = memory_per_stage(SHAPE, replace(TRAINING, **change), Layout(data_parallel_size=4))
    assert stage.parts["optimizer"] == expected * 8_030_261_248 / 4


def test_the_update_copies_what_is_not_fp32_when_the_activations_are_gone() -> None:
    def stage_of(sequences: int = 1, length: int = 128, **change: Any) -> Mapping[str, float]:
        training = Training(length, sequences, grad_reduce_in_fp32=False, **change)
        return memory_per_stage(SHAPE, training, Layout(data_parallel_size=sequences))[0].parts

    name, freed = "fp32 copies in the update", 32 * 128 * 149_632 + 6 * 128 * 128256
    assert stage_of()[name] == 4 * 8_030_261_248 - freed
    assert name not in stage_of(use_precision_aware_optimizer=True)
    assert stage_of(2, 8192)[name] == 0
    small = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
    assert stage_of(**small)[name] == 8 * 8_030_261_248 - freed


@pytest.mark.parametrize(("sharded", "ranks"), [(True, 8), (False, 1)])
def test_state_by_hand(sharded: bool, ranks: int) -> None:
    training, layout = replace(TRAINING, use_distributed_optimizer=sharded), Layout(1, 1, 2, 4)
    (stage,) = memory_per_stage(SHAPE, training, layout)
    # 8 030 261 248 parameters: 2 bytes, 4 bytes, and 12 bytes over data x context = 8 ranks.
    sizes = [part / 8_030_261_248 for part in list(stage.parts.values())[:3]]
    assert sizes == [2, 4, 12 / ranks]
    assert stage.parts["activations"] == 32 * 4096 * 149_632


@pytest.mark.parametrize(
    ("tensor", "stages", "head_as_layer"), [(1, 1, False), (2, 4, False), (8, 2, False), (4, 17, True)]
)
def test_stages_hold_every_parameter_once(tensor: int, stages: int, head_as_layer: bool) -> None:
    layout = Layout(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=stages)
    if head_as_layer:
        layout = with_head_as_layer(layout, SHAPE)
    matrices, others = map(
        sum, zip(*(stage_parameters(SHAPE, layout, i) for i in range(stages)), strict=True)
    )
    assert matrices * tensor == SHAPE.num_layers * SHAPE.layer_matrices
    # Norms are on every tensor-parallel rank.
    norms = SHAPE.num_layers * SHAPE.layer_norms + SHAPE.hidden_size
    assert (others - norms) * tensor == SHAPE.embedding + SHAPE.head


@pytest.mark.parametrize(
    ("stages", "virtual", "microbatches"),
    [(4, 1, 32), (4, 1, 2), (4, 5, 32), (4, 5, 4), (8, 8, 64), (2, 2, 2), (8, 5, 16)],
)
def test_in_flight_equals_the_schedule_of_megatron_core(stages: int, virtual: int, microbatches: int) -> None:
    from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches

    for stage in range(stages):
        group = SimpleNamespace(size=lambda: stages, rank=lambda stage=stage: stage)
        virtual_size = virtual if virtual > 1 else None
        place = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=virtual_size)
        *_, warmup, later = get_pp_rank_microbatches(microbatches, virtual, stages, p2p_communicator=place)
        layout = Layout(pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=virtual)
        # Each later forward pass comes before the backward pass that frees a place.
        assert in_flight_stages(layout, microbatches, stage) * virtual == pytest.approx(warmup + (later > 0))


def test_recomputation_leaves_the_input_of_a_layer() -> None:
    layout = Layout(recompute="full")
    (stage,) = memory_per_stage(SHAPE, TRAINING, layout)
    assert stage.parts["activations"] == 32 * 8192 * 2 * 4096
    assert stage.parts["recomputed layer"] == 8192 * (149_632 - 2 * 4096)
    (some,) = memory_per_stage(SHAPE, TRAINING, replace(layout, recompute_num_layers=5))
    assert some.parts["activations"] == 8192 * (5 * 2 * 4096 + 27 * 149_632)


def test_peak_is_the_fullest_of_all_stages() -> None:
    shape = load_shape("llama3.1-405b")
    base = Layout(8, 8, 2, 4, virtual_pipeline_model_parallel_size=8)
    uneven = replace(base, stage_layers=(15, 16, 15, 17, 16, 17, 15, 15))
    for layout in (with_head_as_layer(base, shape), uneven):
        stages = memory_per_stage(shape, TRAINING, layout)
        assert peak_memory(shape, TRAINING, layout) == max(stages, key=lambda stage: stage.total)


@pytest.mark.parametrize("peak", PUBLISHED.memory, ids=lambda peak: peak.name)
def test_published_peaks(peak: Peak) -> None:
    found = peak.predict()
    allowed = 0.05 if "TP8" not in peak.name and "MLP" not in peak.name else 0.14
    assert found.total / 1e9 == pytest.approx(peak.peak_gb, rel=allowed)
    if peak.state_gb:
        assert peak.predict_state() / 1e9 == pytest.approx(peak.state_gb, rel=0.06)


PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
LLAMA_2_7B = 6_738_415_616


def load(name: str, *overrides: str) -> ExperimentConfig:
    return load_config(PAPER / f"{name}.yaml", ExperimentConfig, overrides)


def test_bytes_of_one_checkpoint() -> None:
    """bf16 weights, and in fp32 a copy and two moments: 2 + 4 + 8 bytes a parameter."""
    config = load("base2")
    assert checkpoint_bytes(config) == (14 * LLAMA_2_7B, 2 * LLAMA_2_7B)
    full = load("base2", "precision.params_dtype=fp32")
    assert checkpoint_bytes(full) == (16 * LLAMA_2_7B, 4 * LLAMA_2_7B)
    unsharded = ("parallel.use_distributed_optimizer=false", "parallel.overlap_param_gather=false")
    whole = load("base2", "precision.params_dtype=fp32", *unsharded)
    assert checkpoint_bytes(whole) == (12 * LLAMA_2_7B, 4 * LLAMA_2_7B)


@pytest.mark.parametrize(
    ("overrides", "wholes", "weights"),
    [
        ((), 2, 5),  # 24,000 and 25,000; weights of 5,000 to 20,000 and of the best
        (("checkpoint.keep_optimizer=true",), 7, 0),
        (("checkpoint.keep=25",), 25, 0),
        (("checkpoint.keep=24", "checkpoint.keep_every=1000"), 24, 1),
    ],
)
def test_what_stays_of_25_saves(overrides: tuple[str, ...], wholes: int, weights: int) -> None:
    config = load("base2", *overrides)
    assert kept_bytes(config) == (14 * wholes + 2 * weights) * LLAMA_2_7B
    while_written = 0 if wholes == 25 else 14 * LLAMA_2_7B
    assert held_bytes(config) == kept_bytes(config) + while_written


def test_the_study_keeps_under_ten_terabytes() -> None:
    """56.5 TB with the optimizer's state in each of the 25 or 11 checkpoints that were kept of a run."""
    shape = load("base2").model
    kept = 0
    for path in sorted(PAPER.glob("*.yaml")):
        if "\ncheckpoint:" not in path.read_text():
            continue
        config = load(path.stem)
        train = config.train
        if train.train_epochs is not None:  # SFT: ten parts and a rest
            tokens = (10 * config.checkpoint.interval + 1) * train.tokens_per_step
            train = train.model_copy(update={"train_tokens": tokens})
        kept += kept_bytes(config.model_copy(update={"model": config.model or shape, "train": train}))
    assert 8e12 < kept < 10e12
