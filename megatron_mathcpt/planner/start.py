"""A run's config as the planner sees it, and back; whether it fits the GPU, asked before anything starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mathcpt.config.base import build_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Layout, Precision, Recompute, Training
from megatron_mathcpt.planner.memory import GIB, StageMemory, peak_memory
from megatron_mathcpt.planner.shapes import from_llama

PRECISION_OF: dict[str, Precision] = {
    "delayed": "fp8_delayed",
    "tensorwise": "fp8_current",
    "blockwise": "fp8_blockwise",
    "mxfp8": "fp8_mx",
}
# Fields of `Training` and of `Layout` that a run's config has under the same names.
_OPTIMIZER = ("use_precision_aware_optimizer", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
_REDUCTION = ("use_distributed_optimizer", "grad_reduce_in_fp32", "gradient_accumulation_fusion")
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
# What a search takes as given, beside all of the section precision.
_GIVEN = (
    *(f"optimizer.{name}" for name in _OPTIMIZER),
    *(f"parallel.{name}" for name in (*_REDUCTION, "cross_entropy_loss_fusion", "tp_comm_overlap")),
)
# CUDA context, NCCL's buffers and cuBLAS workspaces, which the formulae leave out.
_RUNTIME_GIB = 2.5


@dataclass(frozen=True)
class MemoryCheck:
    """Predicted peak of the fullest pipeline stage against what the GPU has."""

    memory: StageMemory
    memory_gib: float

    @property
    def fits(self) -> bool:
        return self.memory.gib + _RUNTIME_GIB <= self.memory_gib

    def __str__(self) -> str:
        parts = sorted(self.memory.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)
        return (
            f"predicted {self.memory.gib:.1f} of {self.memory_gib:.1f} GiB on pipeline stage "
            f"{self.memory.stage} ({shown or 'less than 0.1 GiB'})"
        )


def check_memory(
    config: ExperimentConfig, world_size: int, *, memory_gib: float, fused: bool = True
) -> MemoryCheck:
    """Predict the peak of `config` on `world_size` GPUs of `memory_gib`; `fused`: with Transformer Engine.

    Needs the resolved config (shape and vocabulary known). Raises `ConfigError` if it cannot fit, with the
    amount and the settings that help.
    """
    if config.model is None:
        raise ConfigError("model: missing; the memory check needs the shape of the starting weights")
    training, layout = from_experiment(config, world_size, fused=fused)
    found = MemoryCheck(peak_memory(from_llama(config.name, config.model), training, layout), memory_gib)
    if not found.fits:
        raise ConfigError(
            f"parallel: {found} and {_RUNTIME_GIB} GiB for CUDA and NCCL do not fit; lower "
            "train.micro_batch_size, raise a parallel size, or ask tools/plan_layout.py for layouts that fit"
        )
    return found


def training_from_overrides(overrides: Sequence[str], *, seq_length: int, global_batch_size: int) -> Training:
    """What a search takes as given: a bf16 run with the distributed optimizer, changed by `overrides`.

    Raises `ConfigError` for an override that is wrong in a training config, or that the search would ignore.
    """
    for override in overrides:
        field = override.partition("=")[0]
        if not field.startswith("precision.") and field not in _GIVEN:
            raise ConfigError(
                f"override '{override}': a search cannot take it as given; known are precision.*, "
                f"{', '.join(_GIVEN)}"
            )
    batch = {"seq_length": seq_length, "global_batch_size": global_batch_size}
    tree = {
        **{"name": "search", "seed": 0, "init": {"hf": "weights"}, "checkpoint": {"interval": 1}},
        "data": {"corpus": "corpus", "blend": {"all": 1.0}},
        "optimizer": {"lr": 1.0},
        "schedule": {"lr_decay_style": "constant"},
        "parallel": dict.fromkeys(_SIZES, 1) | {"use_distributed_optimizer": True},
        "precision": {"params_dtype": "bf16"},
        "train": {"train_tokens": 1, "micro_batch_size": 1, **batch},
    }
    config = build_config(tree, ExperimentConfig, overrides, "search")
    # What overlap needs of the layout is the search's own choice.
    apart = config.parallel.model_copy(update={"tp_comm_overlap": False})
    check_experiment(config.model_copy(update={"parallel": apart}), 1)
    return from_experiment(config, 1, fused=True)[0]


def from_experiment(config: ExperimentConfig, world_size: int, *, fused: bool) -> tuple[Training, Layout]:
    """The planner's view of a run's config; without fused layers (`fused`) nothing else is fused either."""
    parallel, train, precision = config.parallel, config.train, config.precision
    ends = (precision.num_layers_at_start_in_bf16, precision.num_layers_at_end_in_bf16)
    given = _named(config.optimizer, _OPTIMIZER) | _named(parallel, _REDUCTION)
    given["gradient_accumulation_fusion"] &= fused
    training = Training(
        seq_length=train.seq_length,
        global_batch_size=train.global_batch_size,
        precision=PRECISION_OF[precision.fp8_recipe] if precision.fp8_recipe else precision.params_dtype,
        cross_entropy_fusion_impl="te" if parallel.cross_entropy_loss_fusion and fused else None,
        fp8_parameters=precision.fp8_param_gather,
        bf16_layers=ends if precision.first_last_layers_bf16 else (0, 0),
        fused=fused,
        tp_comm_overlap=parallel.tp_comm_overlap,
        **given,
    )
    layers = None
    if parallel.has_uneven_stages and config.model is not None:
        layers = parallel.stage_layers(config.model.num_layers)
    layout = Layout(
        **_named(parallel, _SIZES),
        data_parallel_size=world_size // parallel.model_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size or 1,
        micro_batch_size=train.micro_batch_size,
        recompute=_recompute(parallel),
        recompute_num_layers=parallel.recompute_num_layers if parallel.recompute_method == "block" else None,
        sequence_parallel=parallel.sequence_parallel,
        stage_layers=layers,
    )
    return training, layout


def _named(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _recompute(parallel: ParallelSection) -> Recompute:
    """The planner's kind; core attention alone saves nothing where attention is fused."""
    if parallel.recompute_granularity == "full":
        return "full"
    return "mlp" if "mlp" in parallel.recompute_modules else "none"


def settings(layout: Layout, training: Training) -> list[str]:
    """Overrides that give a training config this layout."""
    virtual = layout.virtual_pipeline_model_parallel_size
    usual = _fusions(Training(training.seq_length, training.global_batch_size))
    parallel = {
        **_named(layout, _SIZES),
        "virtual_pipeline_model_parallel_size": None if virtual == 1 else virtual,
        "sequence_parallel": layout.sequence_parallel,
        "use_distributed_optimizer": training.use_distributed_optimizer,
    }
    values = {f"parallel.{name}": value for name, value in parallel.items()}
    values |= {name: value for name, value in _fusions(training).items() if value != usual[name]}
    values |= {
        "parallel.overlap_grad_reduce": layout.replicas > 1,
        "parallel.overlap_param_gather": layout.replicas > 1 and training.use_distributed_optimizer,
        **_stage_settings(layout),
        **_recompute_settings(layout),
        **_precision_settings(training),
        "train.seq_length": training.seq_length,
        "train.micro_batch_size": layout.micro_batch_size,
        "train.global_batch_size": training.global_batch_size,
    }
    if training.tp_comm_overlap and layout.tensor_model_parallel_size > 1:
        values["parallel.tp_comm_overlap"] = True
    return [f"{name}={'null' if value is None else str(value).lower()}" for name, value in values.items()]


def _fusions(training: Training) -> dict[str, Any]:
    """What is fused, summed in bf16 or kept in fewer bytes; named where it is not the default."""
    return {
        "parallel.grad_reduce_in_fp32": training.grad_reduce_in_fp32,
        "parallel.gradient_accumulation_fusion": training.gradient_accumulation_fusion,
        "parallel.cross_entropy_loss_fusion": training.cross_entropy_fusion_impl is not None,
        **{f"optimizer.{name}": value for name, value in _named(training, _OPTIMIZER).items()},
    }


def _stage_settings(layout: Layout) -> dict[str, Any]:
    """Embedding and head counted as layers, or the ends' layers where only they differ."""
    layers = layout.stage_layers
    if layers is None:
        return {}
    stages = len(layers)
    slots = (sum(layers) + 2) // stages
    if layers == (slots - 1, *[slots] * (stages - 2), slots - 1):
        return {f"parallel.account_for_{part}_in_pipeline_split": True for part in ("embedding", "loss")}
    ends = {"first": layers[0], "last": layers[-1]}
    return {f"parallel.num_layers_in_{end}_pipeline_stage": count for end, count in ends.items()}


def _recompute_settings(layout: Layout) -> dict[str, Any]:
    """Whole layers, the first of each stage or all of them one by one; or every MLP."""
    if layout.recompute == "none":
        return {}
    if layout.recompute == "mlp":
        return {"parallel.recompute_granularity": "selective", "parallel.recompute_modules": "[mlp]"}
    every = layout.recompute_num_layers is None
    return {
        "parallel.recompute_granularity": "full",
        "parallel.recompute_method": "uniform" if every else "block",
        "parallel.recompute_num_layers": 1 if every else layout.recompute_num_layers,
    }


def _precision_settings(training: Training) -> dict[str, Any]:
    """FP8 and its recipe; the formats are Transformer Engine's own for it."""
    if not training.is_fp8:
        return {}
    recipe = next(name for name, precision in PRECISION_OF.items() if precision == training.precision)
    values: dict[str, Any] = {
        "params_dtype": "bf16",
        "fp8": "hybrid" if recipe in ("delayed", "tensorwise") else "e4m3",
        "fp8_recipe": recipe,
        "fp8_param_gather": training.fp8_parameters,
    }
    start, end = training.bf16_layers
    if start or end:
        values["first_last_layers_bf16"] = True
        values |= {"num_layers_at_start_in_bf16": start, "num_layers_at_end_in_bf16": end}
    return {f"precision.{name}": value for name, value in values.items()}
