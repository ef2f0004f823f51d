"""The parts of a run, one visible call each: model, weights, optimizer, dataset, validation sets."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.fp8_utils import is_float8tensor, post_all_gather_processing
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.utils import get_model_config

from megatron_mathcpt.checkpoint.load import load_state, newest_verified, verify_checkpoint
from megatron_mathcpt.checkpoint.save import Saver
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.run_folder import Retention, check_space, checkpoint_counts, load_sealed
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.model.llama import accumulate_in_products, build_model, has_transformer_engine
from megatron_mathcpt.model.settings import DTYPES, check_accelerated
from megatron_mathcpt.model.weights import RandomWeights, fill
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.planner.memory import check_memory, held_bytes
from megatron_mathcpt.train.datasets import TrainDataset, ValidationSet, build_train_dataset, dataset_prefix
from megatron_mathcpt.train.faults import StepGuard
from megatron_mathcpt.train.fused_adam import ensure_fused_adam
from megatron_mathcpt.train.inputs import Inputs, check_resumable
from megatron_mathcpt.train.process import start_evaluation

logger = get_logger(__name__)


@dataclass
class TrainState:
    """Everything the loop works on; only `step` and `losses` are set anew."""

    inputs: Inputs
    layout: Layout
    run_folder: Path
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    dataset: TrainDataset
    validation: dict[str, ValidationSet]
    guard: StepGuard
    saver: Saver
    losses: dict[str, float] = field(default_factory=dict)  # of the newest validation, this step's or older
    step: int = 0

    @property
    def config(self) -> ExperimentConfig:
        return self.inputs.config

    @property
    def consumed_samples(self) -> int:
        """Samples used so far; the position in the data is computed from it."""
        return self.step * self.config.train.global_batch_size


def build(inputs: Inputs, layout: Layout, run_folder: Path) -> TrainState:
    """Build all parts; weights come from the run's own newest checkpoint, else from where `init` says."""
    config = inputs.config
    dataset = build_train_dataset(inputs, run_folder)
    validation = build_validation_sets(config)
    resumed = newest_verified(run_folder, layout)
    if resumed is not None:
        check_resumable(inputs, resumed)
    masked = config.data.document_attention
    model = build_model(inputs.shape, layout, config.precision, document_attention=masked)
    if resumed is None:
        load_initial_weights(model, inputs, layout)
    model = wrap_model(model, config, layout)
    optimizer = build_optimizer(model, config)
    guard = StepGuard(config.faults)
    saver = Saver(
        run_folder,
        layout,
        build_retention(config, resumed),
        config.model_dump(mode="json"),
        inputs.fingerprints,
        on_commit=partial(start_evaluation, command) if (command := config.checkpoint.evaluate) else None,
    )
    state = TrainState(inputs, layout, run_folder, model, optimizer, dataset, validation, guard, saver)
    if resumed is not None:
        load_state(resumed, unwrap(model), optimizer, layout)
        counts = checkpoint_counts(load_sealed(resumed))
        state.step, state.guard = counts.step, StepGuard(config.faults, counts.guard)
    elif config.init.load_optimizer:
        assert inputs.checkpoint is not None
        load_state(inputs.checkpoint, unwrap(model), optimizer, layout)
    if layout.is_writer:
        source = resumed or inputs.checkpoint or config.init.hf or f"seed {config.seed}"
        parameters = inputs.shape.num_parameters()
        logger.info(
            "%s: %s parameters from %s, at step %d", config.name, f"{parameters:,}", source, state.step
        )
    return state


def build_retention(config: ExperimentConfig, resumed: Path | None) -> Retention:
    """Which checkpoints stay; the one that was resumed from is known to be whole."""
    keep = config.checkpoint
    best: tuple[str, ...] = () if keep.keep_best is None else (keep.keep_best,)
    if keep.choose == "lowest_validation_loss":
        best = config.validation.sets
    verified = set() if resumed is None else {resumed.name}
    return Retention(keep.keep, keep.keep_every, best, keep.keep_optimizer, verified)


def check_machine(config: ExperimentConfig, layout: Layout, run_folder: Path) -> None:
    """Refuse what needs Transformer Engine where it is not, and what cannot fit the GPU or the disk."""
    fused = has_transformer_engine()
    check_accelerated(config.parallel, config.precision, fused=fused)
    if config.optimizer.use_precision_aware_optimizer and not fused:
        raise ConfigError(
            "optimizer.use_precision_aware_optimizer: needs a GPU and Transformer Engine's AdamW, which are "
            "not here; leave it out"
        )
    if layout.is_writer:
        check_space(run_folder, held_bytes(config))
    if layout.device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(layout.device).total_memory / 2**30
    found = check_memory(config, torch.distributed.get_world_size(), memory_gib=total, fused=fused)
    if layout.is_writer:
        logger.info("%s", found)


def load_initial_weights(model: list[Any], inputs: Inputs, layout: Layout) -> None:
    """Fill the unwrapped chunks from a checkpoint, Hugging Face weights, or a seed if that was asked for."""
    config = inputs.config
    if inputs.checkpoint is not None:
        verify_checkpoint(inputs.checkpoint, layout, optimizer=config.init.load_optimizer)
        load_state(inputs.checkpoint, model, None, layout)
    elif config.init.hf is not None:
        from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights

        fill(model, HuggingFaceWeights(config.init.hf, inputs.shape))
    else:
        fill(model, RandomWeights(inputs.shape, config.seed))


def wrap_model(model: list[Any], config: ExperimentConfig, layout: Layout) -> list[DistributedDataParallel]:
    """Chunks in Megatron-Core's data-parallel wrapper, their schedule hooks set."""
    parallel = config.parallel
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=parallel.grad_reduce_in_fp32,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        fp8_param_gather=config.precision.fp8_param_gather,
    )
    wrapped = [
        DistributedDataParallel(
            get_model_config(chunk),
            settings,
            chunk,
            disable_bucketing=index > 0,
            pg_collection=layout.groups,
        )
        for index, chunk in enumerate(model)
    ]
    if parallel.gradient_accumulation_fusion and has_transformer_engine():
        for chunk in model:
            accumulate_in_products(chunk)
    schedule = get_model_config(model[0])
    schedule.finalize_model_grads_func = partial(finalize_model_grads, pg_collection=layout.groups)
    if parallel.overlap_grad_reduce:
        schedule.no_sync_func = one_or_all([chunk.no_sync for chunk in wrapped])
        schedule.grad_sync_func = one_or_all([chunk.start_grad_sync for chunk in wrapped])
    if parallel.overlap_param_gather:
        schedule.param_sync_func = one_or_all([chunk.start_param_sync for chunk in wrapped])
    return wrapped


def one_or_all(functions: list[Any]) -> Any:
    """Megatron-Core's schedules take one function, or a list when there are virtual stages."""
    return functions if len(functions) > 1 else functions[0]


def unwrap(model: list[DistributedDataParallel]) -> list[Any]:
    return [chunk.module for chunk in model]


def gather_parameters(state: TrainState) -> None:
    """Have every replica hold every weight now: overlapped gathering brings them with the next forward.

    FP8 weights need Megatron-Core's processing after it, which a forced gather leaves out and the next
    forward's too, as nothing is on its way any more: backward would use the transposes of the step before.
    """
    if state.config.parallel.overlap_param_gather:
        for chunk in state.model:
            chunk.start_param_sync(force_sync=True)
            if quantized := [weight for weight in chunk.parameters() if is_float8tensor(weight)]:
                post_all_gather_processing(quantized)


def build_optimizer(model: list[DistributedDataParallel], config: ExperimentConfig) -> MegatronOptimizer:
    """Megatron-Core's AdamW; the schedule sets its learning rate before each step."""
    ensure_fused_adam()
    settings = {  # under Megatron-Core's names
        name: DTYPES[value] if name.endswith("_dtype") else value
        for name, value in config.optimizer.model_dump().items()
    }
    small = config.optimizer.use_precision_aware_optimizer
    in_bf16 = small and not config.parallel.grad_reduce_in_fp32
    return get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            bf16=config.precision.params_dtype == "bf16",
            params_dtype=DTYPES[config.precision.params_dtype],
            main_grads_dtype=torch.bfloat16 if in_bf16 else torch.float32,
            use_distributed_optimizer=config.parallel.use_distributed_optimizer,
            overlap_param_gather=config.parallel.overlap_param_gather,
            fp8_recipe=config.precision.fp8_recipe,
            **settings,
        ),
        model,
        use_gloo_process_groups=False,
    )


def build_validation_sets(config: ExperimentConfig) -> dict[str, ValidationSet]:
    if config.data.corpus is None:
        return {}
    return {
        pool: ValidationSet(
            dataset_prefix(config.data.corpus, pool, "validation"),
            config.train.seq_length,
            config.validation.samples,
        )
        for pool in config.validation.sets
    }
