"""Memory by hand, in flight against Megatron-Core's own schedule, and against published peaks."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from megatron_mathcpt.planner.flops import parameters
from megatron_mathcpt.planner.layout import Layout, Training, with_head_as_layer
from megatron_mathcpt.planner.memory import (
    in_flight_stages,
    memory_per_stage,
    peak_memory,
    saved_per_token,
    stage_parameters,
)
from megatron_mathcpt.planner.published import Peak, load_peaks
from megatron_mathcpt.planner.shapes import load_shape

SHAPE = load_shape("llama3-8b")
TRAINING = Training(seq_length=8192, global_batch_size=128)


def test_saved_bytes_by_hand() -> None:
    saved = saved_per_token(SHAPE, TRAINING, Layout())
    # 2 norm inputs and 2 outputs of 4096; 4096 + 2 x 1024 mixed; 4096 + 1024 rotated; bf16.
    assert saved["norm inputs"] == saved["norm outputs"] == 2 * 2 * 4096
    assert saved["query, key, value"] == 2 * 6144
    assert saved["rotated query, key"] == 2 * 5120
    assert saved["gate, up"] == 2 * 2 * 14336
    assert saved["activation"] == 2 * 14336
    assert sum(saved.values()) == 149_632
    fp8 = saved_per_token(SHAPE, replace(TRAINING, precision="fp8_delayed"), Layout())
    # Norm outputs and activation at half; a one-byte copy of the attention output more.
    assert sum(fp8.values()) == 149_632 - 2 * 4096 - 14336 + 4096


def test_state_by_hand() -> None:
    # 8 030 261 248 parameters: 2 bytes, 4 bytes, and 12 bytes over data x context = 8 ranks.
    layout = Layout(context_parallel_size=2, data_parallel_size=4)
    (stage,) = memory_per_stage(SHAPE, TRAINING, layout)
    assert stage.parts["weights"] == 2 * 8_030_261_248
    assert stage.parts["gradients"] == 4 * 8_030_261_248
    assert stage.parts["optimizer"] == 12 * 8_030_261_248 / 8
    assert stage.parts["activations"] == 32 * 4096 * 149_632
    whole = replace(TRAINING, use_distributed_optimizer=False)
    assert memory_per_stage(SHAPE, whole, layout)[0].parts["optimizer"] == 12 * 8_030_261_248


@pytest.mark.parametrize(
    ("tensor", "stages", "head_as_layer"), [(1, 1, False), (2, 4, False), (8, 2, False), (4, 17, True)]
)
def test_stages_hold_every_parameter_once(tensor: int, stages: int, head_as_layer: bool) -> None:
    layout = Layout(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=stages)
    if head_as_layer:
        layout = with_head_as_layer(layout, SHAPE)
    count = parameters(SHAPE)
    matrices, others = map(
        sum, zip(*(stage_parameters(SHAPE, layout, i) for i in range(stages)), strict=True)
    )
    assert matrices * tensor == count.num_layers * count.layer_matrices
    # Norms are on every tensor-parallel rank.
    norms = count.num_layers * count.norms + count.final_norm
    assert (others - norms) * tensor == count.embedding + count.head


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
    base = Layout(
        tensor_model_parallel_size=8,
        pipeline_model_parallel_size=8,
        virtual_pipeline_model_parallel_size=8,
        context_parallel_size=2,
        data_parallel_size=4,
    )
    for layout in (
        with_head_as_layer(base, shape),
        replace(base, stage_layers=(15, 16, 15, 17, 16, 17, 15, 15)),
    ):
        stages = memory_per_stage(shape, TRAINING, layout)
        assert peak_memory(shape, TRAINING, layout) == max(stages, key=lambda stage: stage.total)


@pytest.mark.parametrize("peak", load_peaks(), ids=lambda peak: peak.name)
def test_published_peaks(peak: Peak) -> None:
    found = peak.predict()
    allowed = 0.05 if peak.training.precision == "bf16" else 0.13
    assert found.total / 1e9 == pytest.approx(peak.peak_gb, rel=allowed)
    if peak.state_gb:
        assert found.state / 1e9 == pytest.approx(peak.state_gb, rel=0.06)
