"""The one check of a run's sections against each other and against the world size.

It does not import torch, so it runs on a login node, before any process starts.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection
from megatron_mathcpt.config.phases import phases_of, pool_tokens
from megatron_mathcpt.errors import ConfigError


class Division(NamedTuple):
    """`found`, the value of `field`, must be divisible by `divisor`; `what` describes the divisor."""

    field: str
    found: int
    divisor: int
    what: str


Conflicts = dict[str, bool]  # each message, and whether the config has that conflict
_TENSOR_SIZE = "parallel.tensor_model_parallel_size"
_FP8_MULTIPLE = 16  # of both dimensions of a matrix in cuBLAS' FP8 GEMMs (Transformer Engine's user guide)


def check_experiment(config: ExperimentConfig, world_size: int) -> None:
    """Check the sections against each other and against `world_size` processes.

    Raises `ConfigError` naming every field at fault; starts nothing.
    """
    if found := conflicts_of(config, world_size):
        raise ConfigError("", found)


def conflicts_of(config: ExperimentConfig, world_size: int) -> list[str]:
    """What does not match, each once; also of sections that do not pass their own checks."""
    found = dict[str, str]()
    try:
        phases = phases_of(config) if config.phases and config.train.train_tokens else ()
        for where, own in ("", config), *((f"phases.{phase.name}: ", phase.config) for phase in phases):
            for field, size, divisor, what in divisions(own, world_size):
                if size % divisor:
                    found.setdefault(f"{field}: {size} is not divisible by {what} = {divisor}", where)
            conflicts = (_data_conflicts(own), _parallel_conflicts(own), _checkpoint_conflicts(own))
            for message in (message for some in conflicts for message, wrong in some.items() if wrong):
                found.setdefault(message, where)
            if own.model and own.model.max_position_embeddings < (length := own.train.seq_length):
                limit = f"{own.model.max_position_embeddings}, the model's max_position_embeddings"
                found.setdefault(f"{'' if where else 'train.'}seq_length: {length} is above {limit}", where)
        sizes = {phase.config.train.micro_batch_size * phase.config.train.seq_length for phase in phases}
        if len(sizes) > 1 and config.parallel.tp_comm_overlap:
            found["parallel.tp_comm_overlap: has buffers of one size, but the phases have several"] = ""
    except ConfigError as error:
        found[str(error)] = ""
    return [where + message for message, where in found.items()]


def check_passes(config: ExperimentConfig, available: Mapping[str, float]) -> None:
    """Raise `ConfigError` for a pool that the token budget repeats more often than `data.max_epochs`.

    `available` are the training tokens of each pool; one that is not in it is not checked.
    """
    data, epochs = config.data, config.train.train_epochs
    for pool, taken in pool_tokens(config).items():
        tokens, cap = available.get(pool, math.inf), data.epoch_cap(pool)
        if epochs is not None and epochs > cap:
            asked = f"data.max_epochs: train.train_epochs asks for {epochs:g} passes over '{pool}'"
            raise ConfigError(f"{asked}, more than {cap:g}; lower train.train_epochs, or raise the cap")
        if (passes := taken / tokens) > cap:
            field = f"data.max_epochs{f'.{pool}' if isinstance(data.max_epochs, dict) else ''}"
            found = f"{taken:,.0f} tokens of pool '{pool}' are {passes:.2f} passes over the {tokens:,.0f}"
            remedy = "give the pool more text or a smaller share, lower train.train_tokens, or raise the cap"
            raise ConfigError(f"{field}: {found} that it has for training, more than {cap:g}; {remedy}")


def check_continued(
    config: ExperimentConfig, available: Mapping[str, float], seen: Mapping[str, float]
) -> None:
    """Raise `ConfigError` for a pool that is read on past the pass over it that earlier runs have begun.

    Megatron-Core's order of several passes depends on their number, so that it would not be read on.
    `seen` are the tokens of each pool that those runs have taken.
    """
    for pool, taken in pool_tokens(config).items():
        before, limit = seen.get(pool, 0), available.get(pool, math.inf) * min(1, config.data.epoch_cap(pool))
        if before and before + taken > limit:
            found = f"{taken:,.0f} tokens of pool '{pool}' after {before:,.0f} are more than {limit:,.0f}"
            found += ", one pass or what data.max_epochs allows"
            remedy = "lower train.train_tokens or the share, or leave it out to begin the pool again"
            raise ConfigError(f"init.continue_data: {found}; {remedy}")


def _parallel_conflicts(config: ExperimentConfig) -> Conflicts:
    """Layout, recomputation and precision."""
    parallel, precision, optimizer = config.parallel, config.precision, config.optimizer
    gather_needs = parallel.use_distributed_optimizer and parallel.overlap_grad_reduce
    window = None if config.model is None or config.data.document_attention else config.model.window_size
    fp32, fp16_masters = precision.params_dtype == "fp32", optimizer.main_params_dtype == "fp16"
    return {
        # A setting without effect is an error: the run would not be what its config says.
        "parallel.sequence_parallel: has no effect with tensor_model_parallel_size 1": (
            parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1
        ),
        "parallel.virtual_pipeline_model_parallel_size: has no effect with pipeline size 1": (
            parallel.virtual_pipeline_model_parallel_size is not None
            and parallel.pipeline_model_parallel_size == 1
        ),
        "parallel.overlap_param_gather: needs use_distributed_optimizer and overlap_grad_reduce": (
            parallel.overlap_param_gather and not gather_needs
        ),
        "parallel.tp_comm_overlap: needs sequence_parallel": (
            parallel.tp_comm_overlap and not parallel.sequence_parallel
        ),
        "parallel.account_for_*_in_pipeline_split: cannot be combined with num_layers_in_*_pipeline_stage": (
            parallel.ends != (None, None) and any(parallel.counted_as_layers)
        ),
        "precision.fp8_param_gather: needs parallel.use_distributed_optimizer": (
            precision.fp8_param_gather and not parallel.use_distributed_optimizer
        ),
        "optimizer.use_precision_aware_optimizer: needs parallel.use_distributed_optimizer": (
            optimizer.use_precision_aware_optimizer and not parallel.use_distributed_optimizer
        ),
        "optimizer.name: Megatron-Core's muon has no parallel.use_distributed_optimizer; leave one out": (
            optimizer.name == "muon" and parallel.use_distributed_optimizer
        ),
        "parallel.grad_reduce_in_fp32: has no effect with precision.params_dtype fp32": (
            fp32 and not parallel.grad_reduce_in_fp32
        ),
        "optimizer.main_params_dtype: has no effect with precision.params_dtype fp32": fp32 and fp16_masters,
        "train.deterministic: parallel.cross_entropy_loss_fusion is not deterministic; leave one out": (
            config.train.deterministic and parallel.cross_entropy_loss_fusion
        ),
        "optimizer.main_params_dtype: fp16 with precision.fp8_param_gather needs fp8_recipe delayed": (
            precision.fp8_param_gather and precision.fp8_recipe != "delayed" and fp16_masters
        ),
        "parallel.context_parallel_size: ring attention has no windows, and model.window_size is below "
        "train.seq_length; set it to 1": (
            parallel.context_parallel_size > 1 and window is not None and window < config.train.seq_length
        ),
        "parallel.recompute_num_layers: with recompute_method uniform it must divide the layers of each "
        "stage, or of each virtual stage": not _recompute_divides(config),
    }


def _data_conflicts(config: ExperimentConfig) -> Conflicts:
    """Model, token budget, data and the logging of their losses."""
    sft, epochs, sets = config.data.sft is not None, config.train.train_epochs, config.validation.sets
    return {
        "model: missing; init.scratch needs the shape: num_layers, hidden_size, ffn_hidden_size, "
        "num_attention_heads": config.init.scratch and config.model is None,
        "optimizer.min_lr: above optimizer.lr": config.optimizer.min_lr > config.optimizer.lr,
        "train.train_epochs: for data.sft only; give train.train_tokens": epochs is not None and not sft,
        "validation.sets: needs data.corpus": bool(sets) and config.data.corpus is None,
        "logging.loss_by_source: SFT data is one source; leave it out": config.logging.loss_by_source and sft,
    }


def _checkpoint_conflicts(config: ExperimentConfig) -> Conflicts:
    """Validation and which checkpoints are kept."""
    checkpoint, sets = config.checkpoint, config.validation.sets
    saves, validates = checkpoint.interval, config.validation.interval
    chooses, best, every = checkpoint.choose != "newest", checkpoint.keep_best, checkpoint.keep_every
    has_best = best is not None
    kept = every is not None or has_best or chooses
    best_is_known = best in sets and validates is not None and saves % validates == 0
    return {
        # A checkpoint is chosen by the loss at its own step, so each save needs a validation at that step.
        "checkpoint.choose: lowest_validation_loss needs validation.interval = checkpoint.interval": (
            chooses and validates != saves
        ),
        "checkpoint.keep_best: choose lowest_validation_loss keeps its own best": chooses and has_best,
        "checkpoint.keep_every: not a multiple of checkpoint.interval": bool(every and every % saves),
        "checkpoint.keep_optimizer: applies only to checkpoints kept in addition to the newest; set "
        "keep_every, keep_best or choose": checkpoint.keep_optimizer and not kept,
        "checkpoint.keep_best: needs one of validation.sets, and validation.interval that divides "
        "checkpoint.interval": has_best and not best_is_known,
        "validation.sets: empty, but validation.interval is set": validates is not None and not sets,
    }


def _recompute_divides(config: ExperimentConfig) -> bool:
    """Whether uniform recomputation units fill each stage; else Megatron-Core overruns its last layer."""
    parallel, shape = config.parallel, config.model
    if parallel.recompute_method != "uniform" or parallel.recompute_num_layers is None or shape is None:
        return True
    virtual = parallel.virtual_pipeline_model_parallel_size or 1
    sizes = {layers // virtual for layers in parallel.stage_layers(shape.num_layers)}
    if counted := sum(parallel.counted_as_layers):
        slots = (shape.num_layers + counted) // (parallel.pipeline_model_parallel_size * virtual)
        sizes = {slots, slots - 1}
    return all(layers % parallel.recompute_num_layers == 0 for layers in sizes)


def divisions(config: ExperimentConfig, world_size: int) -> list[Division]:
    """The divisibility rules, in the order of reporting; the planner's search uses them too."""
    parallel, train, shape = config.parallel, config.train, config.model
    tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    length, batch, stages = train.seq_length, train.global_batch_size, parallel.pipeline_model_parallel_size
    replicas = train.micro_batch_size * max(1, world_size // parallel.model_size)
    sizes = f"{_TENSOR_SIZE} x pipeline_model_parallel_size x context_parallel_size"
    tokens = "train.micro_batch_size x seq_length / context size"
    rules = [
        Division("world size (--processes or the launcher's)", world_size, parallel.model_size, sizes),
        Division("train.global_batch_size", batch, replicas, "train.micro_batch_size x data parallel size"),
    ]
    if context > 1:  # each rank has two chunks of a sequence
        rules.append(Division("train.seq_length", length, 2 * context, "2 x context_parallel_size"))
    if parallel.sequence_parallel:  # splits them further
        rules.append(Division("train.seq_length", length, tensor * context, "tensor x context size"))
    if parallel.virtual_pipeline_model_parallel_size:  # interleaved stages take turns
        field, what = "train.global_batch_size in microbatches", "parallel.pipeline_model_parallel_size"
        rules.append(Division(field, batch // replicas, stages, what))
    fp8, needed = _FP8_MULTIPLE if config.precision.fp8 else 1, "the multiple that FP8 needs"
    rules.append(Division(tokens, train.micro_batch_size * length // context, fp8, needed))
    if shape is None:
        return rules
    ffn, width = shape.ffn_hidden_size, f"16 (FP8) x {_TENSOR_SIZE}"
    return [
        *rules,
        Division("model.num_attention_heads", shape.num_attention_heads, tensor, _TENSOR_SIZE),
        Division("model.num_query_groups", shape.query_groups, tensor, _TENSOR_SIZE),
        Division("model.ffn_hidden_size", ffn, tensor, _TENSOR_SIZE),
        *_stage_divisions(parallel, shape.num_layers),
        Division("model.hidden_size", shape.hidden_size, fp8, needed),
        Division("model.ffn_hidden_size", ffn, fp8 * tensor, width),
    ]


def _stage_divisions(parallel: ParallelSection, num_layers: int) -> list[Division]:
    """Rules for an even division of the layers among pipeline stages and virtual stages."""
    stages = parallel.pipeline_model_parallel_size
    virtual = parallel.virtual_pipeline_model_parallel_size or 1
    if parallel.ends == (None, None):
        counted = num_layers + sum(parallel.counted_as_layers)
        name = "model.num_layers" + (" with embedding and loss" if any(parallel.counted_as_layers) else "")
        return [Division(name, counted, stages * virtual, "pipeline x virtual pipeline size")]
    given = [layers for layers in parallel.ends if layers is not None]
    left, middle = num_layers - sum(given), stages - len(given)
    if left < 0 or bool(left) != bool(middle):
        rest = f"leave {left} of {num_layers} layers for the other {middle} stages"
        raise ConfigError(f"parallel.num_layers_in_*_pipeline_stage: {rest}")
    name, what = "parallel.num_layers_in_{}_pipeline_stage", "middle stages x virtual size"
    ends = [(name.format(end), n) for end, n in zip(("first", "last"), parallel.ends, strict=True) if n]
    rules = [Division(field, layers, virtual, "virtual pipeline size") for field, layers in ends]
    return [*rules, Division("layers of the middle stages", left, max(1, middle) * virtual, what)]
