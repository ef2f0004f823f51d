"""Cross-checks of a training config, each with the field it must name, and every config that ships."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BASE = next((ROOT / "configs").rglob("quickstart_base.yaml"))

UNEVEN = ["parallel.pipeline_model_parallel_size=2"]
UNEVEN += [f"parallel.num_layers_in_{end}_pipeline_stage=1" for end in ("first", "last")]
COUNTED = "parallel.account_for_loss_in_pipeline_split=true"
TENSOR_1 = "parallel.tensor_model_parallel_size=1"
FULL = ["parallel.recompute_granularity=full", "parallel.recompute_method=uniform"]
FP8 = ["precision.params_dtype=bf16", "precision.fp8=hybrid", "precision.fp8_recipe=tensorwise"]
DELAYED = "precision={params_dtype: bf16, fp8: hybrid, fp8_recipe: delayed"
ALONE = "parallel={tensor_model_parallel_size: 1, pipeline_model_parallel_size: 1"
SMALL = ["parallel.use_distributed_optimizer=true", "optimizer.use_precision_aware_optimizer=true"]


@pytest.mark.parametrize(
    ("overrides", "world_size", "named"),
    [
        ([], 3, "world size"),
        (["train.global_batch_size=5"], 4, "train.global_batch_size"),
        (["parallel.tensor_model_parallel_size=16"], 16, "model.num_attention_heads"),
        (["model.num_query_groups=1"], 2, "model.num_query_groups"),
        (["model.ffn_hidden_size=511"], 2, "model.ffn_hidden_size"),
        (["parallel.pipeline_model_parallel_size=3"], 6, "model.num_layers"),
        (["parallel.sequence_parallel=true", TENSOR_1], 1, "parallel.sequence_parallel"),
        (["parallel.virtual_pipeline_model_parallel_size=2"], 2, "parallel.virtual_pipeline"),
        (["parallel.context_parallel_size=2", "train.seq_length=254"], 4, "train.seq_length"),
        (["parallel.overlap_param_gather=true"], 2, "parallel.overlap_param_gather"),
        (["optimizer.min_lr=1.0"], 2, "optimizer.min_lr"),
        (["model.max_position_embeddings=16"], 2, "train.seq_length: 512 is above 16, the model's"),
        (["parallel.tp_comm_overlap=true"], 2, "parallel.tp_comm_overlap"),
        ([*UNEVEN, COUNTED], 4, r"parallel.account_for_\*_in_pipeline_split"),
        ([*UNEVEN, "model.num_layers=3"], 4, "parallel.num_layers_in"),
        ([UNEVEN[0], "parallel.num_layers_in_first_pipeline_stage=9"], 4, "parallel.num_layers_in"),
        ([UNEVEN[0], COUNTED, "model.num_layers=4"], 4, "model.num_layers with embedding and loss"),
        ([*FULL, "parallel.recompute_num_layers=3"], 2, "parallel.recompute_num_layers"),
        ([*FP8, "precision.fp8_param_gather=true"], 2, "precision.fp8_param_gather"),
        ([*FP8, "train.seq_length=121"], 2, "train.micro_batch_size x seq_length"),
        ([*FP8, "model.ffn_hidden_size=520"], 2, "model.ffn_hidden_size"),
        (["parallel.grad_reduce_in_fp32=false"], 2, "parallel.grad_reduce_in_fp32"),
        ([*SMALL, "optimizer.main_params_dtype=fp16"], 2, "optimizer.main_params_dtype"),
        (["train.deterministic=true", "parallel.cross_entropy_loss_fusion=true"], 2, "train.deterministic"),
        (["validation.sets=[]", "validation.interval=5"], 2, "validation.sets"),
        (["checkpoint.keep_optimizer=true"], 2, "checkpoint.keep_optimizer"),
    ],
)
def test_what_cannot_run_names_its_field(overrides: list[str], world_size: int, named: str) -> None:
    config = load_config(BASE, ExperimentConfig, overrides)
    with pytest.raises(ConfigError, match=f"(?m)^(  )?{named}"):
        check_experiment(config, world_size)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init.checkpoint=runs/base", "set exactly one of scratch"),
        ("init.scratch=false", "set exactly one of scratch"),
        ("init.initial_loss_samples=4", "have no effect without initial_loss"),
        ("init.initial_loss_band=.inf", "finite number"),
        ("data.max_epochs={other: 2}", r"max_epochs.other names no pool"),
        ("data.max_epochs=0", r"data: max_epochs: 0 passes; give a number above 0"),
        ("data.max_epochs={general: -1}", r"data: max_epochs: -1 passes"),
        ("model.num_query_groups=3", "no multiple of num_query_groups"),
        ("parallel.recompute_granularity=full", "full needs recompute_method and recompute_num_layers"),
        ("parallel.recompute_granularity=selective", "selective needs recompute_modules"),
        ("parallel.recompute_num_layers=1", "no effect without recompute_granularity"),
        ("precision.fp8=hybrid", "fp8 needs fp8_recipe"),
        ("faults.spike_window=3", "faults.spike_window: expected a whole number of at least 4, found 3"),
        ("precision.fp8_recipe=delayed", "no effect without fp8"),
        ("precision={params_dtype: fp32, fp8: e4m3, fp8_recipe: delayed}", "fp8 needs params_dtype: bf16"),
        (f"{DELAYED}, first_last_layers_bf16: true}}", "delayed scaling runs all layers in FP8"),
        (f"{ALONE}, account_for_loss_in_pipeline_split: true}}", "uneven stages have no effect"),
    ],
)
def test_a_wrong_section_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(BASE, ExperimentConfig, [override])


@pytest.mark.parametrize(
    ("sizes", "layers"),
    [
        ({}, (3, 3, 3)),
        ({"num_layers_in_first_pipeline_stage": 1}, (1, 4, 4)),
        ({"num_layers_in_first_pipeline_stage": 3, "num_layers_in_last_pipeline_stage": 2}, (3, 4, 2)),
        ({"account_for_loss_in_pipeline_split": True}, (3, 3, 2)),
        ({f"account_for_{end}_in_pipeline_split": True for end in ("embedding", "loss")}, (2, 3, 2)),
    ],
)
def test_layers_of_each_stage(sizes: dict[str, Any], layers: tuple[int, ...]) -> None:
    parallel = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=3, **sizes)
    assert parallel.stage_layers(sum(layers)) == layers


def test_budget_is_rounded_up_to_whole_steps() -> None:
    train = load_config(BASE, ExperimentConfig, ["train.train_tokens=4097"]).train
    assert (train.tokens_per_step, train.train_steps, train.train_samples) == (512, 9, 9)
