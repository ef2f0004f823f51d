"""The training loop: step, check, log, validate, save or stop; before it, the gate on the first loss.

A conversion or a tokenizer that is subtly wrong trains on without an error; only its first loss tells. A few
samples tell it: their mean loss has a spread far above the band, but both sides see the same samples.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset

from megatron_mathcpt.errors import CheckpointError, TrainingDiverged
from megatron_mathcpt.formats.run_folder import CheckpointCounts, RunCounts, SourceTokens
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.train.components import TrainState, gather_parameters, unwrap
from megatron_mathcpt.train.datasets import Batch, SftDataset, SourceCounter
from megatron_mathcpt.train.faults import check_replicas
from megatron_mathcpt.train.metrics import Metrics, profiled
from megatron_mathcpt.train.process import StopFlag
from megatron_mathcpt.train.step import StepResult, learning_rate, mean_loss, mean_losses, train_step

logger = get_logger(__name__)
_SHOWN_SAMPLES = 64
_ROWS = 1024  # positions whose logits are held at once
_GARBAGE_COLLECTION_STEPS = 100  # in step on all ranks, so that none waits for another's collector


def train(state: TrainState, metrics: Metrics, stop: StopFlag, alive: Callable[[], None]) -> bool:
    """Train to the target; True if it was reached, False if a signal stopped the run after a save."""
    config, last, stopping = state.config, state.config.train.train_steps, False
    gc.disable()
    try:
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
                losses = mean_losses(state, state.validation.values())
                state.losses = dict(zip(state.validation, losses, strict=True))
                metrics.write_validation(state.step, state.losses)
            if saving:
                save(state, beside=config.checkpoint.async_save and not stopping and state.step < last)
            if saving or validating:
                metrics.restart_clock()
                alive()
            if is_due(state.step, _GARBAGE_COLLECTION_STEPS):
                gc.collect()
    finally:
        gc.enable()
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


def save(state: TrainState, *, beside: bool) -> None:
    """Save a checkpoint of this step, written before the training goes on or beside it."""
    run = progress(state).model_dump(exclude_unset=True)
    counts = CheckpointCounts(**run, eos_id=state.inputs.eos_id, guard=state.guard.state())
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


def check_initial_loss(state: TrainState, alive: Callable[[], None]) -> None:
    """Compare the loss on the first samples with what `init.initial_loss` says; all ranks call it.

    `alive` is called after each sample. Raises `CheckpointError` if the loss lies outside the band. A resumed
    run has passed the gate before.
    """
    init = state.config.init
    if init.initial_loss is None or state.step:
        return
    samples = Subset(state.dataset, range(min(init.initial_loss_samples, len(state.dataset))))
    (loss,) = mean_losses(state, [samples])
    alive()
    expected, source = init.initial_loss, "init.initial_loss"
    if expected == "transformers":
        assert init.hf is not None
        expected, source = transformers_loss(init.hf, samples, state.layout, alive), "transformers"
    if not abs(loss - expected) <= init.initial_loss_band:
        raise CheckpointError(
            f"initial loss {loss:.4f} is not within {init.initial_loss_band:g} of {expected:.4f} ({source}); "
            "starting weights, tokenizer or data do not fit"
        )
    if state.layout.is_writer:
        size = len(samples)
        logger.info("initial loss of %d samples %.4f, expected %.4f by %s", size, loss, expected, source)


def transformers_loss(folder: Path, samples: Any, layout: Layout, alive: Callable[[], None]) -> float:
    """Loss per token of the Hugging Face weights on `samples`, computed by rank 0; all ranks call it."""
    reference = _reference(folder, layout.device) if layout.is_writer else None
    total = torch.zeros(2, dtype=torch.float64)
    for index in range(len(samples)):
        sums = torch.zeros(2, dtype=torch.float64, device=layout.device)
        if reference is not None:
            sums = _reference_sums(reference, Batch.of([samples[index]]).to(layout.device))
        dist.broadcast(sums, src=0)
        total += sums.cpu()  # waits, so that every rank is alive for as long as rank 0 computes
        alive()
    return mean_loss(total.tolist())


def _reference(folder: Path, device: torch.device) -> Any:
    """transformers' Llama in fp32 on `device`, its weights in host memory, brought over layer by layer.

    Beside the run's own model the device holds one layer in fp32, its activations of one sample and the
    logits of some positions: some 5 GB for Llama-3-8B at 8192 tokens, less than a training step takes later.
    The host holds the folder's weights once.
    """
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype="auto", attn_implementation="sdpa"
    ).eval()
    model.model.rotary_emb.to(device)
    for part in (model.model.embed_tokens, *model.model.layers, model.model.norm):
        part.forward = _in_fp32(part, device)(part.forward)
    return model


@torch.no_grad()
def _reference_sums(model: Any, batch: Batch) -> torch.Tensor:
    """[loss sum, tokens] of a batch of one sample in float64; attention stays within its documents."""
    # Always a mask, True where attention goes: without one, grouped queries in fp32 may end in a kernel
    # that holds all scores.
    length, device = batch.tokens.shape[1], batch.tokens.device
    causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
    mask = causal if batch.mask is None else ~batch.mask
    hidden = model.model(batch.tokens, attention_mask=mask, use_cache=False).last_hidden_state
    with _in_fp32(model.lm_head, device):
        pieces = zip(hidden[0].split(_ROWS), batch.labels[0].split(_ROWS), strict=True)
        losses = [cross_entropy(model.lm_head(rows), labels, reduction="none") for rows, labels in pieces]
    counted = batch.loss_mask[0].double()
    return torch.stack([(torch.cat(losses).double() * counted).sum(), counted.sum()])


@contextmanager
def _in_fp32(part: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """`part` with its parameters in fp32 on `device`, and as before afterwards; it decorates a call too."""
    held = {parameter: parameter.data for parameter in part.parameters()}
    for parameter, weights in held.items():
        parameter.data = weights.to(device).float()
    yield
    for parameter, weights in held.items():
        parameter.data = weights
