"""The training loop: step, check, log, validate, save or stop."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_mathcpt.checkpoint.store import CheckpointRecord, save_checkpoint
from megatron_mathcpt.errors import TrainingDiverged
from megatron_mathcpt.train.components import TrainState, unwrap
from megatron_mathcpt.train.datasets import tokens_seen
from megatron_mathcpt.train.metrics import Metrics, reduce_losses
from megatron_mathcpt.train.schedule import learning_rate
from megatron_mathcpt.train.signals import StopFlag
from megatron_mathcpt.train.step import forward_only, train_step

GARBAGE_COLLECTION_STEPS = 100  # in step on all ranks, so that none waits for another's collector


@contextmanager
def manual_garbage_collection() -> Iterator[None]:
    """Leave collection to the loop's own schedule."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@manual_garbage_collection()
def train(state: TrainState, metrics: Metrics, stop: StopFlag) -> bool:
    """Train to the target; True if it was reached, False if a signal stopped the run after a save."""
    config = state.config
    last = config.train.train_steps
    while state.step < last:
        samples = state.consumed_samples + config.train.global_batch_size
        rate = learning_rate(config.schedule, config.optimizer, samples, config.train.train_samples)
        result = train_step(state, state.consumed_samples, rate)
        if not math.isfinite(result.grad_norm):
            raise TrainingDiverged(
                f"gradient norm is not finite at step {state.step + 1} "
                f"(samples {state.consumed_samples} to {samples - 1}); no process applied the step"
            )
        state.step += 1
        metrics.add(state.step, rate, result)
        stopping = state.layout.any_true(stop.requested)
        saving = stopping or state.step == last or state.step % config.checkpoint.interval == 0
        validating = is_validation_step(state)
        if saving or validating or state.step % config.logging.interval == 0:
            metrics.flush()
        if validating:
            metrics.write_validation(state.step, validate(state))
        if saving:
            save(state)
        if saving or validating:
            metrics.restart_clock()
        if stopping:
            return state.step == last
        if state.step % GARBAGE_COLLECTION_STEPS == 0:
            gc.collect()
    return True


def is_validation_step(state: TrainState) -> bool:
    """Whether the validation sets are due after this step."""
    interval = state.config.validation.interval
    due = state.step == state.config.train.train_steps or (interval and state.step % interval == 0)
    return bool(state.validation) and bool(due)


def validate(state: TrainState) -> dict[str, float]:
    """Mean loss per token of each named set, the same number in every layout."""
    losses = [forward_only(state, dataset, len(dataset)) for dataset in state.validation.values()]
    return dict(zip(state.validation, reduce_losses(losses), strict=True))


def save(state: TrainState) -> None:
    """Save a checkpoint of this step."""
    record = CheckpointRecord(
        config=state.config.model_dump(mode="json"),
        inputs=state.inputs.fingerprints,
        counts=progress(state) | {"eos_id": state.inputs.eos_id},
    )
    keep = state.config.checkpoint.keep
    save_checkpoint(state.run_folder, unwrap(state.model), state.optimizer, record, state.layout, keep=keep)


def progress(state: TrainState) -> dict[str, object]:
    """How far the run is: steps, samples, and tokens of each source asked for and seen."""
    return {
        "step": state.step,
        "steps": state.step,
        "consumed_samples": state.consumed_samples,
        "consumed_tokens": state.consumed_tokens,
        "tokens_by_source": tokens_by_source(state),
    }


def tokens_by_source(state: TrainState) -> dict[str, dict[str, int]]:
    """Tokens of each pool, or of the SFT data, that the budget asks for and that were seen."""
    train, data = state.config.train, state.config.data
    assert train.train_tokens is not None
    if data.sft is not None:
        return {"sft": {"asked": train.train_tokens, "seen": state.consumed_tokens}}
    shares = data.shares()
    seen = tokens_seen(state.dataset, list(shares), state.consumed_samples, train.seq_length)
    return {
        pool: {"asked": round(share * train.train_tokens), "seen": seen[pool]}
        for pool, share in shares.items()
    }
