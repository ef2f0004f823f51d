"""The one check of a run's sections against each other and the world size.

Nothing here imports torch, so it answers on a login node, before any process starts.
"""

from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.errors import ConfigError

Conflict = tuple[bool, str]  # whether fields contradict each other, and what to say then
# Set True when the case "graphs" of tests/train/test_gpu.py passes: its losses left those of the plain run at
# the third step (megatron-core 0.16.1, Transformer Engine 2.12, H100), the cause is not known.
GRAPHS_TRAIN_RIGHT = False
_FP8_MULTIPLE = 16  # of both sides of a matrix in cuBLAS' FP8 products (Transformer Engine's user guide)


def check_experiment(config: ExperimentConfig, world_size: int) -> None:
    """Check the sections against each other and against `world_size` processes.

    Raises `ConfigError` naming the field at fault; starts nothing.
    """
    for field, found, divisor, what in _divisions(config, world_size):
        if found % divisor:
            raise ConfigError(f"{field}: {found} is not divisible by {what} = {divisor}")
    for conflicts in (_data_conflicts, _parallel_conflicts, _checkpoint_conflicts):
        for wrong, message in conflicts(config):
            if wrong:
                raise ConfigError(message)


def _parallel_conflicts(config: ExperimentConfig) -> list[Conflict]:
    """Layout, recomputation and precision."""
    parallel = config.parallel
    gather_needs = parallel.use_distributed_optimizer and parallel.overlap_grad_reduce
    return [
        (
            parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1,
            "parallel.sequence_parallel: has no effect with tensor_model_parallel_size 1",
        ),
        (
            parallel.virtual_pipeline_model_parallel_size is not None
            and parallel.pipeline_model_parallel_size == 1,
            "parallel.virtual_pipeline_model_parallel_size: has no effect with pipeline size 1",
        ),
        (
            parallel.overlap_param_gather and not gather_needs,
            "parallel.overlap_param_gather: needs use_distributed_optimizer and overlap_grad_reduce",
        ),
        (
            parallel.tp_comm_overlap and not parallel.sequence_parallel,
            "parallel.tp_comm_overlap: needs sequence_parallel",
        ),
        (
            parallel.ends != (None, None) and any(parallel.counted_as_layers),
            "parallel.account_for_*_in_pipeline_split: cannot go with num_layers_in_*_pipeline_stage",
        ),
        (
            config.precision.fp8_param_gather and not parallel.use_distributed_optimizer,
            "precision.fp8_param_gather: needs parallel.use_distributed_optimizer",
        ),
        (
            config.optimizer.use_precision_aware_optimizer and not parallel.use_distributed_optimizer,
            "optimizer.use_precision_aware_optimizer: needs parallel.use_distributed_optimizer",
        ),
        (
            not parallel.grad_reduce_in_fp32 and config.precision.params_dtype == "fp32",
            "parallel.grad_reduce_in_fp32: has no effect with precision.params_dtype fp32",
        ),
        (
            config.optimizer.main_params_dtype == "fp16" and config.precision.params_dtype == "fp32",
            "optimizer.main_params_dtype: has no effect with precision.params_dtype fp32",
        ),
        (
            config.train.deterministic and parallel.cross_entropy_loss_fusion,
            "train.deterministic: parallel.cross_entropy_loss_fusion is not; leave one out",
        ),
        (
            config.precision.fp8_param_gather
            and config.precision.fp8_recipe != "delayed"
            and config.optimizer.main_params_dtype == "fp16",
            "optimizer.main_params_dtype: fp16 with precision.fp8_param_gather needs fp8_recipe delayed",
        ),
        (
            parallel.cuda_graph_impl != "none" and not GRAPHS_TRAIN_RIGHT,
            "parallel.cuda_graph_impl: on an H100 a run with Megatron-Core's graphs had other gradients from "
            "its second step on than one without (configs/LOG.md, 2026-11-27); leave it out",
        ),
        (
            parallel.cuda_graph_impl != "none" and config.data.document_attention,
            "parallel.cuda_graph_impl: a captured layer takes no documents (data.reset_attention_mask, "
            "data.sft)",
        ),
        (
            not _recompute_divides(config),
            "parallel.recompute_num_layers: with recompute_method uniform it must divide the layers of each "
            "stage (each virtual one too)",
        ),
    ]


def _data_conflicts(config: ExperimentConfig) -> list[Conflict]:
    """Model, budget, data and what is logged of them."""
    validation = config.validation
    return [
        (
            config.init.scratch and config.model is None,
            "model: missing; init.scratch needs the model's shape",
        ),
        (
            config.optimizer.min_lr > config.optimizer.lr,
            "optimizer.min_lr: above optimizer.lr",
        ),
        (
            config.train.train_epochs is not None and config.data.sft is None,
            "train.train_epochs: for data.sft only; give train.train_tokens",
        ),
        (
            bool(validation.sets) and config.data.corpus is None,
            "validation.sets: need data.corpus",
        ),
        (
            config.logging.loss_by_source and config.data.sft is not None,
            "logging.loss_by_source: SFT data is one source; leave it out",
        ),
    ]


def _checkpoint_conflicts(config: ExperimentConfig) -> list[Conflict]:
    """Validation and which checkpoints are kept."""
    checkpoint, validation = config.checkpoint, config.validation
    return [
        (
            checkpoint.choose != "newest" and validation.interval != checkpoint.interval,
            "checkpoint.choose: lowest_validation_loss needs validation.interval = checkpoint.interval",
        ),
        (
            checkpoint.choose != "newest" and checkpoint.keep_best is not None,
            "checkpoint.keep_best: choose lowest_validation_loss keeps its own best",
        ),
        (
            checkpoint.keep_every is not None and checkpoint.keep_every % checkpoint.interval != 0,
            "checkpoint.keep_every: not a multiple of checkpoint.interval",
        ),
        (
            checkpoint.keep_optimizer
            and checkpoint.keep_every is None
            and checkpoint.keep_best is None
            and checkpoint.choose == "newest",
            "checkpoint.keep_optimizer: is of those kept beside the newest, and none is: set keep_every, "
            "keep_best or choose",
        ),
        (
            checkpoint.keep_best is not None
            and (
                checkpoint.keep_best not in validation.sets
                or validation.interval is None
                or checkpoint.interval % validation.interval != 0
            ),
            "checkpoint.keep_best: needs one of validation.sets, and validation.interval that divides "
            "checkpoint.interval",
        ),
        (
            validation.interval is not None and not validation.sets,
            "validation.sets: empty, but validation.interval is set",
        ),
    ]


def _recompute_divides(config: ExperimentConfig) -> bool:
    """Whether units of uniform recomputation fill each stage; Megatron-Core would run past the last layer."""
    parallel, shape = config.parallel, config.model
    if parallel.recompute_method != "uniform" or shape is None:
        return True
    assert parallel.recompute_num_layers is not None
    virtual = parallel.virtual_pipeline_model_parallel_size or 1
    if any(parallel.counted_as_layers):
        counted = shape.num_layers + sum(parallel.counted_as_layers)
        slots = counted // (parallel.pipeline_model_parallel_size * virtual)
        sizes = {slots, slots - 1}
    else:
        sizes = {layers // virtual for layers in parallel.stage_layers(shape.num_layers)}
    return all(layers % parallel.recompute_num_layers == 0 for layers in sizes)


def _divisions(config: ExperimentConfig, world_size: int) -> list[tuple[str, int, int, str]]:
    """What must divide what: (field, its value, divisor, name of the divisor), in the order to report."""
    parallel, train, shape = config.parallel, config.train, config.model
    tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    replicas = max(1, world_size // parallel.model_size)
    rules = [
        (
            "world size (--processes or the launcher's)",
            world_size,
            parallel.model_size,
            "parallel.tensor_model_parallel_size x pipeline_model_parallel_size x context_parallel_size",
        ),
        (
            "train.global_batch_size",
            train.global_batch_size,
            train.micro_batch_size * replicas,
            "train.micro_batch_size x data parallel size",
        ),
    ]
    if context > 1:
        rules.append(("train.seq_length", train.seq_length, 2 * context, "2 x context_parallel_size"))
    if parallel.sequence_parallel:
        rules.append(("train.seq_length", train.seq_length, tensor * context, "tensor x context size"))
    if parallel.virtual_pipeline_model_parallel_size:
        microbatches = train.global_batch_size // (train.micro_batch_size * replicas)
        rules.append(
            (
                "train.global_batch_size in microbatches",
                microbatches,
                parallel.pipeline_model_parallel_size,
                "parallel.pipeline_model_parallel_size",
            )
        )
    if config.precision.fp8 is not None:
        tokens = train.micro_batch_size * train.seq_length // context
        rules.append(
            ("train.micro_batch_size x seq_length / context size", tokens, _FP8_MULTIPLE, "what FP8 needs")
        )
    if shape is None:
        return rules
    size = "parallel.tensor_model_parallel_size"
    rules += [
        ("model.num_attention_heads", shape.num_attention_heads, tensor, size),
        ("model.num_query_groups", shape.query_groups, tensor, size),
        ("model.ffn_hidden_size", shape.ffn_hidden_size, tensor, size),
        *_stage_divisions(parallel, shape.num_layers),
    ]
    if config.precision.fp8 is not None:
        rules += [
            ("model.hidden_size", shape.hidden_size, _FP8_MULTIPLE, "what FP8 needs"),
            ("model.ffn_hidden_size", shape.ffn_hidden_size, _FP8_MULTIPLE * tensor, f"16 (FP8) x {size}"),
        ]
    return rules


def _stage_divisions(parallel: ParallelSection, num_layers: int) -> list[tuple[str, int, int, str]]:
    """Layers that must come out even over pipeline stages and their virtual parts."""
    stages, virtual = (
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size or 1,
    )
    if parallel.ends == (None, None):
        counted = num_layers + sum(parallel.counted_as_layers)
        name = "model.num_layers" + (" with embedding and loss" if any(parallel.counted_as_layers) else "")
        return [(name, counted, stages * virtual, "pipeline x virtual pipeline size")]
    given = [layers for layers in parallel.ends if layers is not None]
    left, middle = num_layers - sum(given), stages - len(given)
    if left < 0 or bool(left) != bool(middle):
        raise ConfigError(
            f"parallel.num_layers_in_*_pipeline_stage: leave {left} of {num_layers} layers for the other "
            f"{middle} stages"
        )
    name = "parallel.num_layers_in_{}_pipeline_stage"
    return [
        (name.format(end), layers, virtual, "virtual pipeline size")
        for end, layers in zip(("first", "last"), parallel.ends, strict=True)
        if layers is not None
    ] + [("layers of the middle stages", left, max(1, middle) * virtual, "middle stages x virtual size")]
