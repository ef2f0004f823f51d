"""The training loop: step, check, log, validate, save or stop."""

import gc
from collections.abc import Callable

from megatron_mathcpt.errors import TrainingDiverged
from megatron_mathcpt.formats.run_folder import CheckpointCounts, RunCounts, SourceTokens
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.train.components import TrainState, gather_parameters, unwrap
from megatron_mathcpt.train.datasets import SftDataset, SourceCounter
from megatron_mathcpt.train.faults import check_replicas
from megatron_mathcpt.train.metrics import Metrics, profiled
from megatron_mathcpt.train.process import StopFlag
from megatron_mathcpt.train.step import StepResult, forward_only, learning_rate, reduce_losses, train_step

logger = get_logger(__name__)
_SHOWN_SAMPLES = 64
_GARBAGE_COLLECTION_STEPS = 100  # in step on all ranks, so that none waits for another's collector


def train(state: TrainState, metrics: Metrics, stop: StopFlag, alive: Callable[[], None]) -> bool:
    """Train to the target; True if it was reached, False if a signal stopped the run after a save."""
    gc.disable()
    try:
        return _train(state, metrics, stop, alive)
    finally:
        gc.enable()


def _train(state: TrainState, metrics: Metrics, stop: StopFlag, alive: Callable[[], None]) -> bool:
    config, last, stopping = state.config, state.config.train.train_steps, False
    while state.step < last and not stopping:
        samples = state.consumed_samples + config.train.global_batch_size
        rate = learning_rate(config.schedule, config.optimizer, samples, config.train.train_samples)
        with profiled(config.logging, state.layout, state.run_folder, state.step + 1):
            result = take_step(state, rate)
        alive()
        metrics.add(state.step, rate, result)
        if is_due(state.step, config.faults.replica_check_interval):
            gather_parameters(state)
            check_replicas(unwrap(state.model), state.layout, state.step)
        state.saver.poll()
        stopping = state.layout.any_true(stop.requested)
        saving = stopping or state.step == last or is_due(state.step, config.checkpoint.interval)
        validating = is_validation_step(state)
        if saving or validating or is_due(state.step, config.logging.interval):
            metrics.flush()
        if validating:
            state.losses = validate(state)
            metrics.write_validation(state.step, state.losses)
        if saving:
            save(state, beside=config.checkpoint.async_save and not stopping and state.step < last)
        if saving or validating:
            metrics.restart_clock()
            alive()
        if is_due(state.step, _GARBAGE_COLLECTION_STEPS):
            gc.collect()
    return state.step == last


def take_step(state: TrainState, rate: float) -> StepResult:
    """Train one step and count it; a fault is told with the samples that the step saw."""
    try:
        result = train_step(state, state.consumed_samples, rate)
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{error} ({describe_samples(state, state.step + 1)})") from error
    state.step += 1
    if result.skipped is not None and state.layout.is_writer:
        samples = describe_samples(state, state.step)
        logger.warning("step %d skipped: %s (%s)", state.step, result.skipped, samples)
    return result


def is_validation_step(state: TrainState) -> bool:
    """Whether the validation sets are due after this step."""
    due = is_due(state.step, state.config.validation.interval)
    return bool(state.validation) and (due or state.step == state.config.train.train_steps)


def is_due(step: int, interval: int | None) -> bool:
    """Whether something done every `interval` steps is due after this one; None is never."""
    return interval is not None and step % interval == 0


def describe_samples(state: TrainState, step: int) -> str:
    """The samples that `step` sees, and where they come from; `mathcpt trace step` says more."""
    size, dataset = state.config.train.global_batch_size, state.dataset
    samples = range((step - 1) * size, step * size)
    if isinstance(dataset, SftDataset):
        return f"samples {samples[0]} to {samples[-1]}"
    pools = list(state.config.data.blend)
    named = [f"{pools[dataset.dataset_index[n]]} {dataset.dataset_sample_index[n]}" for n in samples]
    shown = ", ".join(named[:_SHOWN_SAMPLES]) + (", ..." if len(named) > _SHOWN_SAMPLES else "")
    return f"samples {samples[0]} to {samples[-1]}: {shown}"


def validate(state: TrainState) -> dict[str, float]:
    """Mean loss per token of each named set, the same number in every layout."""
    losses = [forward_only(state, dataset, len(dataset)) for dataset in state.validation.values()]
    return dict(zip(state.validation, reduce_losses(losses), strict=True))


def save(state: TrainState, *, beside: bool) -> None:
    """Save a checkpoint of this step, written before the training goes on or beside it."""
    counts = CheckpointCounts(
        **progress(state).model_dump(exclude_unset=True),
        eos_id=state.inputs.eos_id,
        guard=state.guard.state(),
    )
    if is_validation_step(state):
        counts = counts.model_copy(update={"validation": state.losses})
    gather_parameters(state)
    state.saver.save(unwrap(state.model), state.optimizer, counts, beside=beside)


def progress(state: TrainState) -> RunCounts:
    """How far the run is, and of each pool, or the SFT data, tokens that the budget asks for and seen."""
    budget, data = state.config.train.train_tokens, state.config.data
    assert budget is not None
    seen = SourceCounter(state.dataset, state.config).up_to(state.step)
    shares = data.shares() or dict.fromkeys(seen, 1.0)
    return RunCounts(
        step=state.step,
        steps=state.step,
        consumed_samples=state.consumed_samples,
        consumed_tokens=state.step * state.config.train.tokens_per_step,
        skipped_steps=tuple(state.guard.skipped),
        tokens_by_source={
            pool: SourceTokens(asked=round(share * budget), seen=seen[pool]) for pool, share in shares.items()
        },
    )
