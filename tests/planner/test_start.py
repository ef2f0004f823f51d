"""The memory check of a training start, and shapes by name and from a config.json."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import dump_yaml, load_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Layout, Precision, Training
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.search import search
from megatron_mathcpt.planner.shapes import load_shape
from megatron_mathcpt.planner.start import check_memory, from_experiment, settings, training_from_overrides


def experiment(**parallel: object) -> ExperimentConfig:
    """A run of Llama-3-8B in bf16 on one GPU, but for `parallel`."""
    shape = load_shape("llama3-8b").model_dump(include=set(LlamaShape.model_fields))
    tree = {
        **{"name": "llama-8b", "seed": 1, "model": shape, "init": {"scratch": True}},
        "data": {"corpus": "corpus", "blend": {"general": 1.0}},
        **{"optimizer": {"lr": 1e-4}, "schedule": {"lr_decay_style": "constant"}},
        "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1} | parallel,
        "precision": {"params_dtype": "bf16"},
        "train": {"train_tokens": 10**9, "micro_batch_size": 1, "seq_length": 8192, "global_batch_size": 128},
        "checkpoint": {"interval": 10},
    }
    return ExperimentConfig.model_validate_json(json.dumps(tree))


def test_a_run_that_fits_says_how_much_it_needs() -> None:
    config = experiment(context_parallel_size=2, use_distributed_optimizer=True)
    found = check_memory(config, 64, memory_gib=79.6)
    # 2 + 4 bytes a parameter, 12/64 of the optimizer, 32 layers of 4096 tokens, 6 bytes a logit.
    expected = 8_030_261_248 * (6 + 12 / 64) + 32 * 4096 * 149_632 + 6 * 4096 * 128256
    assert found.memory.total == pytest.approx(expected)
    assert str(found).startswith(
        f"predicted {expected / 2**30:.1f} of 79.6 GiB on pipeline stage 0 (gradients 29.9,"
    )


def test_a_run_that_does_not_fit_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"predicted 155\.8 of 79.6 GiB .* do not fit; lower train.micro"):
        check_memory(experiment(context_parallel_size=2), 8, memory_gib=79.6)


def test_layout_and_training_are_those_of_the_config() -> None:
    config = experiment(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=4,
        sequence_parallel=True,
    )
    training, layout = from_experiment(config, 16, fused=False)
    assert layout.name == "TP2 PP2x4 CP1 DP4 MBS1"
    assert layout.sequence_parallel
    assert training.grad_reduce_in_fp32
    assert not training.fused
    assert not training.use_distributed_optimizer
    # Nothing is fused where the layers are not, whatever the config asks for.
    assert not training.gradient_accumulation_fusion
    assert from_experiment(config, 16, fused=True)[0].gradient_accumulation_fusion


def test_a_search_takes_the_overrides_of_a_training_config() -> None:
    sizes = {"seq_length": 4096, "global_batch_size": 64}
    plain = Training(4096, 64)
    assert training_from_overrides([], **sizes) == plain
    fp8 = ["precision.fp8=e4m3", "precision.fp8_recipe=blockwise", "precision.fp8_param_gather=true"]
    assert training_from_overrides(
        [*fp8, "parallel.grad_reduce_in_fp32=false", "parallel.cross_entropy_loss_fusion=true"], **sizes
    ) == replace(
        plain,
        precision="fp8_blockwise",
        fp8_parameters=True,
        grad_reduce_in_fp32=False,
        cross_entropy_fusion_impl="te",
    )


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
        training_from_overrides(override.split(), seq_length=4096, global_batch_size=64)


UNUSUAL = {
    "grad_reduce_in_fp32": False,
    "gradient_accumulation_fusion": False,
    "cross_entropy_fusion_impl": "te",
    "use_precision_aware_optimizer": True,
    "main_params_dtype": "fp16",
    "exp_avg_dtype": "bf16",
    "exp_avg_sq_dtype": "bf16",
}


@pytest.mark.parametrize(
    ("precision", "change"),
    [
        ("bf16", {}),
        ("bf16", UNUSUAL),
        ("fp8_delayed", {}),
        ("fp8_current", {"bf16_layers": (2, 4)}),
        ("fp8_blockwise", {"fp8_parameters": True, "cross_entropy_fusion_impl": "te"}),
        ("fp8_mx", {}),
    ],
)
def test_printed_settings_give_a_config_the_planned_layout(
    tmp_path: Path, precision: Precision, change: dict[str, Any]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(experiment()), encoding="utf-8")
    training = Training(8192, 128, precision=precision, tp_comm_overlap=True, **change)
    machine = load_machine("b200" if precision == "fp8_mx" else "h100")
    limit = 71.6  # GiB; some layouts must recompute
    found = search(load_shape("llama3-8b"), training, 16, machine, limit_gib=limit)
    layouts = [plan.layout for plan in found.plans]
    kinds: dict[tuple[object, ...], Layout] = {}  # one of each kind, the fastest
    for layout in layouts:
        virtual = layout.virtual_pipeline_model_parallel_size > 1
        kinds.setdefault((layout.recompute, bool(layout.stage_layers), virtual), layout)
    assert {kind[0] for kind in kinds} == {"none", "mlp", "full"}
    assert {kind[1] for kind in kinds} == {False, True}
    for layout in [*kinds.values(), *layouts[:20]]:
        config = load_config(path, ExperimentConfig, settings(layout, training))
        check_experiment(config, 16)
        tensor = layout.tensor_model_parallel_size > 1
        assert from_experiment(config, 16, fused=True) == (replace(training, tp_comm_overlap=tensor), layout)
