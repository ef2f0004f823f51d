"""Memory and checkpoints by hand, microbatches in flight by Megatron-Core's schedule, published peaks."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.resolved_study import load_study
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.planner import memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import load_shape
from tests.benchmarks.planner_published import PUBLISHED, Peak
from tests.support.planned_runs import LAYER, PARAMETERS, SMALL, SMALL_MOMENTS, bf16_ends, planned_8b

SAVED = 149_632  # bytes per token of a layer in bf16
MATRICES = 32 * LAYER
OTHERS = PARAMETERS - MATRICES
LOGITS = {None: 6, "native": 12, "te": 2}  # bytes of one while the loss is computed
FULL = {"recompute": "full"}


def parts(run: PlannedRun) -> Mapping[str, float]:
    return memory.memory_per_stage(run)[0].parts


@pytest.mark.parametrize(
    ("precision", "saved", "copies"),
    [
        # 2 norm inputs and 2 outputs of 4096; 4096 + 2 x 1024 mixed; 4096 + 1024 rotated; the attention's
        # output and 32 fp32 sums; gate, up and their product; bf16.
        ("bf16", 2 * (4 * 4096 + 6144 + 5120 + 4096 + 3 * 14336) + 4 * 32, 0),
        # Norm outputs and activation at half; delayed scaling keeps the attention output in one byte more.
        ("delayed", SAVED - 2 * 4096 - 14336 + 4096, 2),
        ("tensorwise", SAVED - 2 * 4096 - 14336, 2),
        # 22528 values of one byte, and a scale of 4 bytes for 128 of them, or of one for 32. Two copies of a
        # weight, each with an fp32 scale for 128 x 128 weights, or a byte for 32.
        ("blockwise", SAVED - 2 * 22528 + 22528 + 4 * 22528 / 128, 2 + 2 * 4 / 16384),
        ("mxfp8", SAVED - 2 * 22528 + 22528 + 22528 / 32, 2 + 2 / 32),
    ],
)
def test_saved_bytes_and_weights_by_hand(precision: str, saved: float, copies: float) -> None:
    run = planned_8b(precision=precision)
    assert sum(memory.saved_per_token(run, run.recipe).values()) == saved
    assert parts(run)["weights"] == pytest.approx((2 + copies) * MATRICES + 2 * OTHERS, rel=1e-12)
    alone = parts(planned_8b(precision=precision, fp8_parameters=True))["weights"]
    assert alone == pytest.approx((copies or 2) * MATRICES + 2 * OTHERS, rel=1e-12)


def test_layers_left_in_bf16_need_the_memory_of_bf16() -> None:
    fp8: dict[str, Any] = {"pp": 4, "precision": "tensorwise", "fp8_parameters": True}
    runs = planned_8b(**fp8), planned_8b(*bf16_ends(1, 3), **fp8), planned_8b(pp=4)
    plain, mixed, bf16 = map(memory.memory_per_stage, runs)
    for part in ("weights", "activations"):
        # One of eight layers of the first stage, three of the last.
        for stage, count in enumerate((1, 0, 0, 3)):
            expected = (8 - count) * plain[stage].parts[part] + count * bf16[stage].parts[part]
            assert mixed[stage].parts[part] == pytest.approx(expected / 8)
    for ends, shares in (((10, 32), [1, 1, 1, 1]), ((10, 0), [1, 0.25, 0, 0])):
        run = planned_8b(*bf16_ends(*ends), **fp8)
        assert [run.bf16_share(stage) for stage in range(4)] == shares


HALF = "optimizer.main_params_dtype=fp16"


@pytest.mark.parametrize(
    ("part", "overrides", "fields", "expected"),
    [
        *(("logits", (), {"loss_fusion": kind}, size * 8192 * 128256) for kind, size in LOGITS.items()),
        ("optimizer", (), {"dp": 4}, (4 + 4 + 4) * PARAMETERS / 4),
        # The lower half of each master; the upper one is the bf16 weight.
        ("optimizer", SMALL, {}, (2 + 4 + 4) * PARAMETERS),
        ("optimizer", (*SMALL, "optimizer.exp_avg_dtype=bf16"), {}, (2 + 2 + 4) * PARAMETERS),
        ("optimizer", (*SMALL, HALF), {}, (2 + 4 + 4) * PARAMETERS),
        # With blockwise FP8 Megatron-Core owns the masters, with delayed scaling Transformer Engine.
        ("optimizer", SMALL, {"precision": "blockwise"}, (4 + 4 + 4) * PARAMETERS),
        ("optimizer", SMALL, {"precision": "delayed"}, (2 + 4 + 4) * PARAMETERS),
        ("optimizer", SMALL, {"precision": "delayed", "fp8_parameters": True}, (4 + 4 + 4) * PARAMETERS),
        ("optimizer", ("precision.params_dtype=fp32",), {}, (4 + 4) * PARAMETERS),
        # Recomputation leaves the input of a layer.
        ("activations", (), FULL, 32 * 8192 * 2 * 4096),
        ("recomputed layer", (), FULL, 8192 * (SAVED - 2 * 4096)),
        ("activations", (), FULL | {"recompute_num_layers": 5}, 8192 * (5 * 2 * 4096 + 27 * SAVED)),
    ],
)
def test_bytes_of_a_part_by_hand(
    part: str, overrides: tuple[str, ...], fields: dict[str, Any], expected: float
) -> None:
    assert parts(planned_8b(*overrides, **fields))[part] == expected


def test_the_update_copies_what_is_not_fp32_after_the_activations_are_freed() -> None:
    def copies(*overrides: str, sequences: int = 1, length: int = 128) -> float | None:
        batch = {"seq_length": length, "global_batch_size": sequences}
        run = planned_8b(*overrides, dp=sequences, grad_reduce_in_fp32=False, **batch)
        return parts(run).get("fp32 copies in the update")

    freed = 32 * 128 * SAVED + 6 * 128 * 128256
    assert copies() == 4 * PARAMETERS - freed
    assert copies(*SMALL) is None
    assert copies(sequences=2, length=8192) == 0
    assert copies(*SMALL_MOMENTS) == 8 * PARAMETERS - freed


@pytest.mark.parametrize(
    ("tensor", "stages", "head_as_layer"), [(1, 1, False), (2, 4, False), (8, 2, False), (4, 17, True)]
)
def test_stages_contain_every_parameter_once(tensor: int, stages: int, head_as_layer: bool) -> None:
    run = planned_8b(tp=tensor, pp=stages, head_as_layer=head_as_layer)
    pairs = (memory.stage_parameters(run, stage) for stage in range(stages))
    matrices, others = map(sum, zip(*pairs, strict=True))
    assert matrices * tensor == MATRICES
    # Norms are on every tensor-parallel rank.
    assert (others - 65 * 4096) * tensor == 2 * 128256 * 4096


@pytest.mark.parametrize(
    ("stages", "virtual", "microbatches"),
    [(4, 1, 32), (4, 1, 2), (4, 5, 32), (4, 5, 4), (8, 8, 64), (2, 2, 2), (8, 5, 16)],
)
def test_in_flight_equals_the_schedule_of_megatron_core(stages: int, virtual: int, microbatches: int) -> None:
    from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches

    run = planned_8b(pp=stages, vp=virtual, global_batch_size=microbatches)
    for stage in range(stages):
        group = SimpleNamespace(size=lambda: stages, rank=lambda stage=stage: stage)
        virtual_size = virtual if virtual > 1 else None
        place = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=virtual_size)
        *_, warmup, later = get_pp_rank_microbatches(microbatches, virtual, stages, p2p_communicator=place)
        # Each later forward pass precedes the backward pass that frees memory.
        assert memory.in_flight_stages(run, stage) * virtual == pytest.approx(warmup + (later > 0))


@pytest.mark.parametrize(
    "stages", [{"head_as_layer": True}, {"stage_layers": (15, 16, 15, 17, 16, 17, 15, 15)}]
)
def test_peak_is_the_fullest_of_all_stages(stages: dict[str, Any]) -> None:
    run = planned_8b(shape=load_shape("llama3.1-405b"), tp=8, pp=8, cp=2, dp=4, vp=8, **stages)
    assert memory.peak_memory(run) == max(memory.memory_per_stage(run), key=lambda stage: stage.gib)


@pytest.mark.parametrize("peak", PUBLISHED.memory, ids=lambda peak: peak.name)
def test_published_peaks(peak: Peak) -> None:
    found = peak.predict()
    allowed = 0.05 if "TP8" not in peak.name and "MLP" not in peak.name else 0.14
    assert found.gib * 2**30 / 1e9 == pytest.approx(peak.peak_gb, rel=allowed)
    if peak.state_gb:
        assert peak.predict_state() / 1e9 == pytest.approx(peak.state_gb, rel=0.06)


PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
LLAMA_2_7B = 6_738_415_616


def load(name: str, *overrides: str) -> ExperimentConfig:
    return load_config(PAPER / f"{name}.yaml", ExperimentConfig, overrides)


FP32 = ("precision.params_dtype=fp32",)
UNSHARDED = ("parallel.use_distributed_optimizer=false", "parallel.overlap_param_gather=false")


@pytest.mark.parametrize(
    ("overrides", "whole", "weights"),
    [((), 2 + 4 + 8, 2), (FP32, 4 + 4 + 8, 4), (FP32 + UNSHARDED, 4 + 8, 4)],
)
def test_bytes_of_one_checkpoint(overrides: tuple[str, ...], whole: int, weights: int) -> None:
    """Weights, in fp32 a copy if they are bf16 or sharded, and two moments."""
    assert memory.checkpoint_bytes(load("base2", *overrides)) == (whole * LLAMA_2_7B, weights * LLAMA_2_7B)


def test_checkpoints_kept_of_25() -> None:
    keep = "checkpoint.keep"
    for overrides, wholes, weights in (
        ((), 2, 5),  # 24,000 and 25,000; weights of 5,000 to 20,000 and of the best
        ((f"{keep}_optimizer=true",), 7, 0),
        ((f"{keep}=25",), 25, 0),
        ((f"{keep}=24", f"{keep}_every=1000"), 24, 1),
    ):
        config = load("base2", *overrides)
        kept = (14 * wholes + 2 * weights) * LLAMA_2_7B
        while_written = 0 if wholes == 25 else 14 * LLAMA_2_7B
        assert (memory.kept_bytes(config), memory.peak_checkpoint_bytes(config)) == (
            kept,
            kept + while_written,
        )


def test_the_study_keeps_under_ten_terabytes() -> None:
    """56.5 TB with the optimizer's state in each of the 25 or 11 checkpoints that were kept of a run."""
    kept = 0
    for config in [run.config for run in load_study(PAPER / "study.yaml").runs.values()]:
        train = config.train
        if train.train_epochs is not None:  # SFT: ten parts and a rest
            tokens = (10 * config.checkpoint.interval + 1) * train.tokens_per_step
            train = train.model_copy(update={"train_tokens": tokens})
        kept += memory.kept_bytes(config.model_copy(update={"train": train}))
    assert 8e12 < kept < 10e12


def test_a_model_that_answers_has_its_weights_and_a_cache_by_hand() -> None:
    """OPT-13B's 800 KB a token are those of arXiv 2309.06180, section 3."""
    opt = DecoderShape(num_layers=40, hidden_size=5120, ffn_hidden_size=20480, num_attention_heads=40)
    one = memory.PROMPT_TOKENS + 2048  # tokens of a sequence
    assert memory.answering_gib(0, opt, 1, 3, 2048) * memory.GIB == 3 * one * 819_200
    llama = load_shape("llama3-70b")
    for tensor, key_heads in (1, 8), (8, 1), (16, 1):  # a key head is on two of sixteen GPUs
        cache = 80 * 2 * key_heads * 128 * 2 * 24 * one
        expected = 70_553_706_496 * 2 / tensor + cache
        found = memory.answering_gib(llama.num_parameters(), llama, tensor, 24, 2048)
        assert found * memory.GIB == pytest.approx(expected, rel=1e-12)
