"""How a model is cut over GPUs, and the batch and precision it is trained with; both from a run's config."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megatron_mathcpt.config.base import build_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.shapes import ModelShape

Precision = Literal["fp32", "bf16", "fp8_delayed", "fp8_current", "fp8_blockwise", "fp8_mx"]
Recompute = Literal["none", "mlp", "full"]  # from light to heavy
PRECISION_OF: dict[str | None, Precision] = {
    "delayed": "fp8_delayed",
    "tensorwise": "fp8_current",
    "blockwise": "fp8_blockwise",
    "mxfp8": "fp8_mx",
}
SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
# Fields of the sections optimizer and parallel that a search takes as given, beside all of precision.
OPTIMIZER = ("use_precision_aware_optimizer", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
FUSIONS = ("grad_reduce_in_fp32", "gradient_accumulation_fusion", "cross_entropy_loss_fusion")
_GIVEN = (
    *(f"optimizer.{name}" for name in OPTIMIZER),
    *(f"parallel.{name}" for name in ("use_distributed_optimizer", *FUSIONS, "tp_comm_overlap")),
)


@dataclass(frozen=True)
class Training:
    """What is the same for every layout of one run.

    `fused` is Transformer Engine's layer spec, else Megatron-Core's local one with torch SDPA;
    `gradient_accumulation_fusion` adds weights' gradients to their buffer within the matrix product;
    `cross_entropy_fusion_impl` is the fused loss (None: not fused); `bf16_layers` are so many at the start
    and at the end that FP8 leaves out; `tp_comm_overlap` runs tensor-parallel collectives under the products
    where a tuned table exists; `fp8_parameters` keeps the block's weights in FP8 only, beside a transposed
    copy unless `disable_parameter_transpose_cache`; `attended_length` is how far back attention goes
    on average where packed documents are masked from each other (None: the whole sequence).
    """

    seq_length: int
    global_batch_size: int
    precision: Precision = "bf16"
    grad_reduce_in_fp32: bool = True
    use_distributed_optimizer: bool = True
    gradient_accumulation_fusion: bool = True
    cross_entropy_fusion_impl: Literal["native", "te"] | None = None
    use_precision_aware_optimizer: bool = False
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    exp_avg_dtype: Literal["fp32", "bf16"] = "fp32"
    exp_avg_sq_dtype: Literal["fp32", "bf16"] = "fp32"
    fp8_parameters: bool = False
    disable_parameter_transpose_cache: bool = False
    bf16_layers: tuple[int, int] = (0, 0)
    fused: bool = True
    tp_comm_overlap: bool = False
    attended_length: int | None = None

    @property
    def is_fp8(self) -> bool:
        return self.precision.startswith("fp8")

    @property
    def weights_in_fp8(self) -> bool:
        return self.is_fp8 and self.fp8_parameters

    @property
    def tokens_per_step(self) -> int:
        return self.seq_length * self.global_batch_size

    @property
    def gradient_bytes(self) -> int:
        return 4 if self.grad_reduce_in_fp32 or self.precision == "fp32" else 2

    @property
    def optimizer_owns_masters(self) -> bool:
        """Whether Transformer Engine's AdamW holds the masters, and reads gradients in the type they have.

        `use_precision_aware_optimizer_no_fp8_or_ds_fp8` of Megatron-Core's OptimizerConfig.
        """
        return self.use_precision_aware_optimizer and (
            self.main_params_dtype == "fp16" or not self.is_fp8 or self.precision == "fp8_delayed"
        )

    @property
    def update_bytes(self) -> int:
        """Bytes of fp32 copies that AdamW's update makes of a weight's gradient, moments and master.

        Of gradients where Megatron-Core hands them over, of a smaller state where Transformer Engine's AdamW
        reads it (optimizers/fused_adam.py, `get_unscaled_state`).
        """
        small = [self.exp_avg_dtype, self.exp_avg_sq_dtype, self.main_params_dtype].count("fp32") - 3
        gradient = self.gradient_bytes == 2 and not self.optimizer_owns_masters
        return 4 * (gradient - small)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of AdamW's two moments and of the master of a weight.

        Of fp32 masters beside bf16 weights Transformer Engine's AdamW keeps only the lower half.
        """
        moments = sum(4 if dtype == "fp32" else 2 for dtype in (self.exp_avg_dtype, self.exp_avg_sq_dtype))
        if self.precision == "fp32":
            return moments
        halved = self.main_params_dtype == "fp16" or (self.optimizer_owns_masters and not self.weights_in_fp8)
        return moments + (2 if halved else 4)


@dataclass(frozen=True)
class Layout:
    """Sizes of the process grid and what each process does at a time; the names are Megatron-Core's.

    `stage_layers` gives the layers of each pipeline stage where they are uneven;
    `recompute_num_layers` is the number of layers of a stage that `recompute` applies to (None: all).
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    micro_batch_size: int = 1
    recompute: Recompute = "none"
    recompute_num_layers: int | None = None
    sequence_parallel: bool = True
    stage_layers: tuple[int, ...] | None = None

    @property
    def replicas(self) -> int:
        """Ranks that reduce a gradient together."""
        return self.data_parallel_size * self.context_parallel_size

    @property
    def gpus(self) -> int:
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.replicas

    @property
    def name(self) -> str:
        """Short text as in `TP4 PP8x5 CP2 DP4 MBS1 recompute full`."""
        virtual = self.virtual_pipeline_model_parallel_size
        name = f"TP{self.tensor_model_parallel_size} PP{self.pipeline_model_parallel_size}"
        name += f"x{virtual}" if virtual > 1 else ""
        name += f" CP{self.context_parallel_size} DP{self.data_parallel_size} MBS{self.micro_batch_size}"
        if self.stage_layers:
            name += " head as layer" if self.stage_layers[0] == self.stage_layers[-1] else " uneven"
        return name if self.recompute == "none" else f"{name} recompute {self.recompute}"

    def layers(self, shape: ModelShape) -> tuple[int, ...]:
        """Layers of each pipeline stage."""
        stages = self.pipeline_model_parallel_size
        return self.stage_layers or (shape.num_layers // stages,) * stages

    def recomputed(self, layers: int) -> int:
        """How many of a stage's `layers` are computed again in backward, whole or their MLP."""
        if self.recompute == "none":
            return 0
        return min(layers, self.recompute_num_layers or layers)

    def microbatches(self, training: Training) -> int:
        """Microbatches that one process sees in a step."""
        return training.global_batch_size // (self.data_parallel_size * self.micro_batch_size)

    def tokens(self, training: Training) -> float:
        """Tokens of one microbatch on one process, before the tensor-parallel cut of the sequence."""
        return self.micro_batch_size * training.seq_length / self.context_parallel_size


def bf16_share(shape: ModelShape, training: Training, layout: Layout, stage: int) -> float:
    """Share of a pipeline stage's layers that FP8 leaves in bf16, as without interleaving."""
    layers = layout.layers(shape)
    first, total = sum(layers[:stage]), sum(layers)
    start, end = training.bf16_layers
    last = first + layers[stage]
    left_out = max(0, min(last, start) - first) + max(0, last - max(first, total - end))
    return min(1.0, left_out / layers[stage]) if training.is_fp8 else 0.0


def with_head_as_layer(layout: Layout, shape: ModelShape) -> Layout:
    """`layout` with embedding and head each counted as one layer (`account_for_*_in_pipeline_split`)."""
    stages = layout.pipeline_model_parallel_size
    slots = (shape.num_layers + 2) // stages
    return replace(layout, stage_layers=(slots - 1, *[slots] * (stages - 2), slots - 1))


def illegal(shape: ModelShape, training: Training, layout: Layout) -> str | None:
    """Why Megatron-Core would refuse `layout`, or None; config/cross_checks.py says what divides what."""
    tensor, context = layout.tensor_model_parallel_size, layout.context_parallel_size
    stages, virtual = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    replica_batch = layout.data_parallel_size * layout.micro_batch_size
    microbatches, length = training.global_batch_size // replica_batch, training.seq_length
    # Embedding and head may stand for a layer each, so only the sum over a layout's slots can be checked.
    uneven_chunks = 0 if layout.stage_layers else shape.num_layers % (stages * virtual)
    rules = [
        (shape.num_attention_heads % tensor, "attention heads do not divide by TP"),
        (shape.query_groups % tensor, "query groups do not divide by TP"),
        (shape.ffn_hidden_size % tensor, "feed-forward width does not divide by TP"),
        (shape.padded_vocab_size % tensor, "padded vocabulary does not divide by TP"),
        (context > 1 and length % (2 * context), "sequence does not divide by 2 CP"),
        (layout.sequence_parallel and length % (tensor * context), "sequence does not divide by TP x CP"),
        (training.global_batch_size % replica_batch, "global batch does not divide by DP x micro batch"),
        (virtual > 1 and microbatches % stages, "interleaving needs microbatches that divide by PP"),
        (virtual > 1 and stages == 1, "virtual stages need PP above 1"),
        (sum(layout.layers(shape)) != shape.num_layers, "layers do not divide by PP"),
        (uneven_chunks, "layers do not divide by PP x virtual stages"),
    ]
    return next((reason for broken, reason in rules if broken), None)


def search_config(overrides: Sequence[str], *, seq_length: int, global_batch_size: int) -> ExperimentConfig:
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
        "parallel": dict.fromkeys(SIZES, 1) | {"use_distributed_optimizer": True},
        "precision": {"params_dtype": "bf16"},
        "train": {"train_tokens": 1, "micro_batch_size": 1, **batch},
    }
    config = build_config(tree, ExperimentConfig, overrides, "search")
    # What overlap needs of the layout is the search's own choice.
    apart = config.parallel.model_copy(update={"tp_comm_overlap": False})
    check_experiment(config.model_copy(update={"parallel": apart}), 1)
    return config


def from_experiment(config: ExperimentConfig, world_size: int, *, fused: bool) -> tuple[Training, Layout]:
    """The planner's view of a run's config; without fused layers (`fused`) nothing else is fused either."""
    parallel, train, precision = config.parallel, config.train, config.precision
    ends = (precision.num_layers_at_start_in_bf16, precision.num_layers_at_end_in_bf16)
    same = {"use_distributed_optimizer", "grad_reduce_in_fp32", "tp_comm_overlap"}
    training = Training(
        seq_length=train.seq_length,
        global_batch_size=train.global_batch_size,
        precision=PRECISION_OF.get(precision.fp8_recipe, precision.params_dtype),
        gradient_accumulation_fusion=parallel.gradient_accumulation_fusion and fused,
        cross_entropy_fusion_impl="te" if parallel.cross_entropy_loss_fusion and fused else None,
        fp8_parameters=precision.fp8_param_gather,
        bf16_layers=ends if precision.first_last_layers_bf16 else (0, 0),
        fused=fused,
        **parallel.model_dump(include=same),
        **config.optimizer.model_dump(include=set(OPTIMIZER)),
    )
    layers = None
    if parallel.has_uneven_stages and config.model is not None:
        layers = parallel.stage_layers(config.model.num_layers)
    layout = Layout(
        **parallel.model_dump(include={*SIZES, "sequence_parallel"}),
        data_parallel_size=world_size // parallel.model_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size or 1,
        micro_batch_size=train.micro_batch_size,
        recompute=_recompute(parallel),
        recompute_num_layers=parallel.recompute_num_layers if parallel.recompute_method == "block" else None,
        stage_layers=layers,
    )
    return training, layout


def _recompute(parallel: ParallelSection) -> Recompute:
    """The planner's kind; core attention alone saves nothing where attention is fused."""
    if parallel.recompute_granularity == "full":
        return "full"
    return "mlp" if "mlp" in parallel.recompute_modules else "none"
