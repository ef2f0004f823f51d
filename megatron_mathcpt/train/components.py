"""The parts of a run, one visible call each: model, weights, optimizer, dataset, validation sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TypeVar

import torch
from megatron.core import distributed
from megatron.core import optimizer as optimizers
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.fp8_utils import is_float8tensor, post_all_gather_processing
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer, muon
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.utils import get_model_config
from torch.optim.optimizer import ParamsT

from megatron_mathcpt.checkpoint.convert import checkpoint_shape
from megatron_mathcpt.checkpoint.huggingface import hf_weights
from megatron_mathcpt.checkpoint.load import CheckpointWeights, load_state, newest_verified, verify_checkpoint
from megatron_mathcpt.checkpoint.save import Saver
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.phases import Phase, phase_at, phases_of
from megatron_mathcpt.config.weight_map import EMBEDDING
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.model import language_model
from megatron_mathcpt.model.language_model import LanguageModel, has_transformer_engine
from megatron_mathcpt.model.settings import DTYPES, check_accelerated
from megatron_mathcpt.model.weights import ExtendedWeights, RandomWeights, fill
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.planner.memory import check_memory, peak_checkpoint_bytes
from megatron_mathcpt.train.blends import TrainDataset, build_train_datasets
from megatron_mathcpt.train.datasets import ValidationSet
from megatron_mathcpt.train.faults import GuardState, StepGuard
from megatron_mathcpt.train.inputs import NO_MUON, Inputs, check_resumable
from megatron_mathcpt.train.process import start_evaluation

logger = get_logger(__name__)
T = TypeVar("T")


@dataclass
class TrainState:
    """Everything the loop works on; it assigns `step` and `losses`, and `enter_phase` the other two."""

    inputs: Inputs
    layout: Layout
    run_folder: Path
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    phases: Sequence[Phase]
    datasets: Sequence[TrainDataset]  # of each phase
    validation: dict[str, ValidationSet]
    guard: StepGuard
    saver: Saver
    losses: dict[str, float] = field(default_factory=dict)  # of the newest validation, this step's or older
    step: int = 0
    number: int = 0  # of the phase that the model is in

    @property
    def phase(self) -> Phase:
        return self.phases[self.number]

    @property
    def config(self) -> ExperimentConfig:
        """The config of the phase."""
        return self.phase.config

    @property
    def dataset(self) -> TrainDataset:
        return self.datasets[self.number]

    @property
    def last_step(self) -> int:
        return self.phases[-1].last_step

    @property
    def consumed_samples(self) -> int:
        """Samples of the phase used so far; the position in the data is computed from it, not stored."""
        return self.phase.samples(self.step) - self.phase.first_sample


def build(inputs: Inputs, layout: Layout, run_folder: Path) -> TrainState:
    """Build all parts; weights come from the run's own newest checkpoint, else from where `init` says."""
    config, init, saving = inputs.config, inputs.config.init, inputs.config.checkpoint
    phases, datasets = phases_of(config), build_train_datasets(inputs, run_folder)
    counts = folders.CheckpointCounts(step=0)
    if (resumed := newest_verified(run_folder, layout)) is not None:
        check_resumable(inputs, resumed)
        counts = folders.checkpoint_counts(folders.checkpoint_manifest(resumed))
    if layout.is_writer:
        folders.drop_rows_after(run_folder / folders.METRICS, counts.step, counts.metrics)
    masked = config.data.document_attention
    number = phase_at(phases, counts.step)
    own = phases[number].config
    assert own.model is not None
    chunks = language_model.build_model(own.model, layout, config.precision, document_attention=masked)
    if resumed is None:  # before the wrapper and the optimizer, which copy the weights
        load_initial_weights(chunks, inputs, layout)
    model = wrap_model(chunks, config, layout)
    optimizer = build_optimizer(model, config)
    if (full := resumed or (inputs.checkpoint if init.load_optimizer else None)) is not None:
        load_state(full, chunks, optimizer, layout)
    # A run that will choose its checkpoint by validation loss must not remove the best one meanwhile.
    best = config.validation.sets if saving.choose == "lowest_validation_loss" else (saving.keep_best,)
    best = tuple(filter(None, best))
    verified = set() if resumed is None else {resumed.name}  # just verified, so not read again
    retention = folders.Retention(saving.keep, saving.keep_every, best, saving.keep_optimizer, verified)
    evaluate = partial(start_evaluation, saving.evaluate) if saving.evaluate else None
    tree = config.model_dump(mode="json")
    saver = Saver(run_folder, layout, retention, tree, inputs.fingerprints, on_commit=evaluate)
    guard = StepGuard(config.faults, GuardState.model_validate(counts.guard or {}))
    if layout.is_writer:
        for line in inputs.summary(resumed):
            logger.info("%s: %s", config.name, line)
    state = TrainState(
        inputs, layout, run_folder, model, optimizer, phases, datasets, _validation(own, inputs), guard, saver
    )
    state.step, state.number = counts.step, number
    return state


def _validation(config: ExperimentConfig, inputs: Inputs) -> dict[str, ValidationSet]:
    return {pool: ValidationSet(config, pool, inputs.eos_id) for pool in config.validation.sets}


def enter_phase(state: TrainState) -> bool:
    """Begin the next phase if the current one is complete; whether that was so."""
    if state.step < state.phase.last_step or state.phase is state.phases[-1]:
        return False
    before, state.number = state.config.model, state.number + 1
    state.validation = _validation(state.config, state.inputs)
    # Other data and another length have other losses, which are no spikes.
    state.guard.state.losses, state.guard.state.norms = [], []
    assert state.config.model is not None
    if state.config.model != before:
        for chunk in unwrap(state.model):
            language_model.set_rotary(chunk, state.config.model, state.layout)
    if state.layout.is_writer:
        logger.info("%s: phase %s begins after step %d", state.config.name, state.phase.name, state.step)
    return True


def check_machine(config: ExperimentConfig, layout: Layout, run_folder: Path) -> None:
    """Refuse settings that need a missing Transformer Engine, and runs that do not fit on GPU or disk."""
    fused = has_transformer_engine()
    check_accelerated(config.parallel, config.precision, fused=fused)
    if config.optimizer.use_precision_aware_optimizer and not fused:
        needs = "needs a GPU and Transformer Engine"
        raise ConfigError(f"optimizer.use_precision_aware_optimizer: {needs}; leave it out")
    if config.optimizer.name == "muon":
        check_muon()
    if layout.is_writer:
        # Now, not after hours, when the first save fails.
        folders.check_space(run_folder, peak_checkpoint_bytes(config))
    if layout.device.type == "cuda":
        total = torch.cuda.get_device_properties(layout.device).total_memory / 2**30
        for phase in phases_of(config):
            size = torch.distributed.get_world_size()
            found = check_memory(phase.config, size, memory_gib=total, fused=fused)
            if layout.is_writer:
                logger.info("%s", found)


def load_initial_weights(model: list[LanguageModel], inputs: Inputs, layout: Layout) -> None:
    """Fill the unwrapped chunks from a checkpoint, Hugging Face weights, or (`init.scratch`) the seed."""
    init = inputs.config.init
    if inputs.checkpoint is not None:
        manifest = verify_checkpoint(inputs.checkpoint, layout, optimizer=init.load_optimizer)
        if inputs.new_rows:
            theirs = CheckpointWeights(inputs.checkpoint, checkpoint_shape(manifest))
            fill(model, ExtendedWeights(theirs, inputs.new_rows))
        else:
            load_state(inputs.checkpoint, model, None, layout)
    elif inputs.hf is not None:
        fill(model, hf_weights(inputs.hf, inputs.new_rows))
    else:
        fill(model, RandomWeights(inputs.shape, inputs.config.seed))


class ReplicatedModel(DistributedDataParallel):
    """Scales gradients by a number of the host."""

    def scale_gradients(self, scaling_factor: float | torch.Tensor) -> None:
        # Megatron-Core passes a tensor of the device, for which it has already waited. PyTorch would round it
        # to the gradients' type, 0.2 % in bf16, and load one value at a time (ATen/native/cuda/Loops.cuh).
        super().scale_gradients(float(scaling_factor))


def wrap_model(
    model: list[LanguageModel], config: ExperimentConfig, layout: Layout
) -> list[DistributedDataParallel]:
    """Wrap the chunks for data parallelism and set the hooks that the schedules call."""
    parallel = config.parallel
    same = {"grad_reduce_in_fp32", "overlap_grad_reduce", "overlap_param_gather", "use_distributed_optimizer"}
    settings = distributed.DistributedDataParallelConfig(
        fp8_param_gather=config.precision.fp8_param_gather, **parallel.model_dump(include=same)
    )
    # Only the first chunk is cut into buckets, as in Megatron-LM (megatron/training/training.py): the
    # communication of later ones overlaps with compute anyway.
    wrap = partial(ReplicatedModel, ddp_config=settings, pg_collection=layout.groups)
    chunks = enumerate(model)
    wrapped = [wrap(get_model_config(one), module=one, disable_bucketing=n > 0) for n, one in chunks]
    if parallel.gradient_accumulation_fusion and has_transformer_engine():
        for chunk in model:  # now that the wrapper has made the gradient buffers
            language_model.fuse_weight_gradients(chunk)
    schedule = get_model_config(model[0])
    schedule.finalize_model_grads_func = partial(finalize_model_grads, pg_collection=layout.groups)
    if parallel.overlap_grad_reduce:
        schedule.no_sync_func = one_or_all([chunk.no_sync for chunk in wrapped])
        schedule.grad_sync_func = one_or_all([chunk.start_grad_sync for chunk in wrapped])
    if parallel.overlap_param_gather:
        schedule.param_sync_func = one_or_all([chunk.start_param_sync for chunk in wrapped])
    return wrapped


def one_or_all(per_chunk: list[T]) -> T | list[T]:
    """Megatron-Core's schedules take a list only if there are virtual pipeline stages."""
    return per_chunk if len(per_chunk) > 1 else per_chunk[0]


def unwrap(model: list[DistributedDataParallel]) -> list[LanguageModel]:
    return [chunk.module for chunk in model]


def gather_parameters(state: TrainState) -> None:
    """Finish the overlapped parameter all-gather now; else it would only complete in the next forward."""
    if state.config.parallel.overlap_param_gather:
        for chunk in state.model:
            chunk.start_param_sync(force_sync=True)
            # A forced gather skips Megatron-Core's processing of FP8 weights, and so does the next
            # forward, with no gather to wait for: backward would use stale transposes.
            if quantized := [weight for weight in chunk.parameters() if is_float8tensor(weight)]:
                post_all_gather_processing(quantized)


def build_optimizer(model: list[DistributedDataParallel], config: ExperimentConfig) -> MegatronOptimizer:
    """Megatron-Core's AdamW or Muon; the schedule sets its learning rate before each step."""
    ensure_fused_adam()
    settings = {  # under Megatron-Core's names
        name: DTYPES[value] if name.endswith("_dtype") else value
        for name, value in config.optimizer.model_dump(exclude={"name", "no_weight_decay"}).items()
    }
    parallel, precision = config.parallel, config.precision
    spared = config.optimizer.no_weight_decay

    def undecayed(weight: torch.Tensor, name: str) -> bool:
        # Of a tied embedding the last pipeline stage has a copy, named as an output layer.
        embeds = name.endswith(EMBEDDING) or getattr(weight, "shared_embedding", False)
        return "embeddings" in spared if embeds else weight.dim() == 1 and "norms_and_biases" in spared

    # The precision-aware optimizer reads gradients in the type they are reduced in, any other in fp32.
    in_bf16 = config.optimizer.use_precision_aware_optimizer and not parallel.grad_reduce_in_fp32
    build = get_megatron_optimizer if config.optimizer.name == "adam" else muon.get_megatron_muon_optimizer
    return build(
        OptimizerConfig(
            optimizer=config.optimizer.name,
            muon_tp_mode="duplicated",  # the same in every layout; a process's rows alone are another update
            bf16=precision.params_dtype == "bf16",
            params_dtype=DTYPES[precision.params_dtype],
            main_grads_dtype=torch.bfloat16 if in_bf16 else torch.float32,
            use_distributed_optimizer=parallel.use_distributed_optimizer,
            overlap_param_gather=parallel.overlap_param_gather,
            fp8_recipe=precision.fp8_recipe,
            **settings,
        ),
        model,
        {ParamKey(with_name_predicate=ParamWithNamePredicate("undecayed", undecayed)): {"wd_mult": 0.0}},
        use_gloo_process_groups=False,
    )


def check_muon() -> None:
    """Refuse Muon where its package is missing, or is not that of Megatron-Core's version."""
    # `object` if it is missing; both renamed an argument between 0.16.1 and 0.19.
    parent = getattr(optimizers, "emerging_optimizers", muon).OrthogonalizedOptimizer
    argument = "use_nesterov" if hasattr(OptimizerConfig, "muon_use_nesterov") else "nesterov"
    if argument not in signature(parent.__init__).parameters:
        raise ConfigError(NO_MUON)


_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAM_DEFAULTS = {"bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


class FusedAdam(torch.optim.Optimizer):
    """AdamW by torch's fused kernel; it and Transformer Engine's FusedAdam load each other's state."""

    def __init__(self, params: ParamsT, lr: float, **settings: object) -> None:
        # Settings that Megatron-Core also passes; any that would change the update is an error.
        assert settings.pop("adam_w_mode", True) and not settings.pop("capturable", False)
        assert settings.keys() <= _ADAM_DEFAULTS.keys(), settings
        super().__init__(params, {"lr": lr} | _ADAM_DEFAULTS | settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if not self.state[param]:
                    self.state[param] = {name: torch.zeros_like(param) for name in _MOMENTS}
            if params:
                # One integer step a group, where torch.optim.AdamW has a tensor for each parameter.
                step = torch.full((), float(group["step"]), device=params[0].device)
                grads, steps = [param.grad for param in params], [step] * len(params)
                means, squares = ([self.state[param][name] for param in params] for name in _MOMENTS)
                rates = {name: group[name] for name in ("lr", "weight_decay", "eps")}
                rates |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
                torch._fused_adamw_(
                    params, grads, means, squares, [], steps, amsgrad=False, maximize=False, **rates
                )


def ensure_fused_adam() -> None:
    """Have Megatron-Core build `FusedAdam` where neither Transformer Engine's nor Apex's can be used."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if on_gpu() and not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    # Else it builds torch's AdamW, whose state its distributed optimizer saves but cannot load.
    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
