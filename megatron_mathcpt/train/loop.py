"""The training loop: step, check, log, validate, save or stop; before it, the gate on the first loss.

A slightly wrong weight conversion or tokenizer raises no error: training just starts from a higher loss. So
the gate compares the loss of a few samples with transformers' on these: that of others varies too much.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset

from megatron_mathcpt.checkpoint.huggingface import load_reference
from megatron_mathcpt.config.phases import pool_tokens
from megatron_mathcpt.errors import CheckpointError, TrainingDiverged
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.manifest import sync_and_describe
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.model.documents import document_mask
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.train.blends import SourceCounter
from megatron_mathcpt.train.components import TrainState, enter_phase, gather_parameters, unwrap
from megatron_mathcpt.train.datasets import Batch, Samples, SftDataset
from megatron_mathcpt.train.faults import check_replicas
from megatron_mathcpt.train.metrics import Metrics, profiled
from megatron_mathcpt.train.process import StopFlag
from megatron_mathcpt.train.step import StepResult, learning_rate, mean_loss, mean_losses, train_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = get_logger(__name__)
_SHOWN_SAMPLES = 64
_ROWS = 1024  # positions whose logits are computed at a time: all of 8192 x 128,256 in fp32 would be 4 GB
_GARBAGE_COLLECTION_STEPS = 100


def train(state: TrainState, metrics: Metrics, stop: StopFlag, heartbeat: Callable[[], None]) -> bool:
    """Train to the target; True if it was reached, False if a signal stopped the run after a save."""
    config, last, stopping = state.config, state.last_step, False
    # Allocations trigger Python's collector, so it runs at a different step on each rank, and the others wait
    # for that rank in their next collective. Below, all ranks collect at the same step.
    gc.disable()
    try:
        if state.step == 0 and config.validation.at_start:
            validate(state, metrics)
            metrics.restart_clock()
            heartbeat()
        while state.step < last and not stopping:
            if enter_phase(state):
                config = state.config
                metrics.enter(state.phase)
            begin, end = state.phase.schedule_span
            tokens = state.phase.tokens(state.step + 1) - begin
            rate = learning_rate(config.schedule, config.optimizer, tokens, end - begin)
            with profiled(config.logging, state.layout, state.run_folder, state.step + 1):
                result = take_step(state, rate)
            heartbeat()
            metrics.add(state.step, rate, result)
            if is_due(state.step, config.faults.replica_check_interval):
                gather_parameters(state)  # overlapped gathering leaves stale ones until the next forward
                check_replicas(unwrap(state.model), state.layout, state.step)
            state.saver.poll()
            # The signal reaches ranks at different moments: all must leave the loop after the same step, or
            # those that continue hang in its first collective.
            stopping = state.layout.any_true(stop.requested)
            ending = stopping or state.step == last
            ends_phase = state.step == state.phase.last_step
            saving = ending or ends_phase or is_due(state.step, config.checkpoint.interval)
            validating = is_validation_step(state)
            # Flush before validating and saving: the window's tokens/s must not include their time, and a run
            # resumed from this checkpoint will not write the rows up to it again.
            if saving or validating or is_due(state.step, config.logging.interval):
                metrics.flush()
            if validating:
                validate(state, metrics)
            if saving:  # after validation, whose losses belong in the checkpoint
                # No step follows the last save: an async one would copy the state into host memory and wait
                # all the same, after a signal with Slurm's kill pending.
                save(state, async_save=config.checkpoint.async_save and not ending)
            if saving or validating:
                metrics.restart_clock()  # the next window's tokens/s is training's alone
                heartbeat()
            if is_due(state.step, _GARBAGE_COLLECTION_STEPS):
                gc.collect()
    finally:
        gc.enable()
    return state.step == last


def take_step(state: TrainState, rate: float) -> StepResult:
    """Train one step and count it; name the step's samples if it fails or is skipped."""
    try:
        result = train_step(state, state.consumed_samples, rate)
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{error} ({describe_samples(state, state.step + 1)})") from error
    # A skipped step counts too: the position in the data and the learning rate are computed from the step.
    state.step += 1
    if result.skipped is not None and state.layout.is_writer:
        samples = describe_samples(state, state.step)
        logger.warning("step %d skipped: %s (%s)", state.step, result.skipped, samples)
    return result


def validate(state: TrainState, metrics: Metrics) -> None:
    """Compute and log the loss on each validation set."""
    losses = mean_losses(state, state.validation.values())
    state.losses = dict(zip(state.validation, losses, strict=True))
    metrics.write_validation(state.step, state.losses)


def is_validation_step(state: TrainState) -> bool:
    """Whether one follows this step: by the interval, and at the end of each phase."""
    due = is_due(state.step, state.config.validation.interval)
    return bool(state.validation) and (due or state.step == state.phase.last_step)


def is_due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def describe_samples(state: TrainState, step: int) -> str:
    """The samples of `step` and their pools; `mathcpt trace step` finds their documents."""
    dataset, samples = state.dataset, range(state.phase.samples(step - 1), state.phase.samples(step))
    if isinstance(dataset, SftDataset):
        return f"samples {samples[0]} to {samples[-1]}"
    pools, first = list(state.config.data.blend), state.phase.first_sample
    places = ((dataset.dataset_index[n - first], dataset.dataset_sample_index[n - first]) for n in samples)
    named = [f"{pools[pool]} {place}" for pool, place in places]
    shown = ", ".join(named[:_SHOWN_SAMPLES]) + (", ..." if len(named) > _SHOWN_SAMPLES else "")
    return f"samples {samples[0]} to {samples[-1]}: {shown}"


def save(state: TrainState, *, async_save: bool) -> None:
    """Save a checkpoint of this step, now or in the background of the next steps."""
    run, guard = progress(state).model_dump(exclude_unset=True), state.guard.state.model_dump(mode="json")
    counts = folders.CheckpointCounts(**run, **state.inputs.recorded, guard=guard)
    if is_validation_step(state):  # else `losses` are an older step's
        counts = counts.model_copy(update={"validation": state.losses})
    if state.layout.is_writer:
        # Synced: after a power cut, a log without rows that a checkpoint has seen would look damaged.
        rows = sync_and_describe(state.run_folder, [folders.METRICS])[folders.METRICS]
        counts = counts.model_copy(update={"metrics": rows.sha256})
    gather_parameters(state)
    state.saver.save(unwrap(state.model), state.optimizer, counts, async_save=async_save)


def progress(state: TrainState) -> folders.RunCounts:
    """How far the run is: steps, samples, and of each pool (or "sft") tokens budgeted and seen."""
    config, inputs, phases = state.inputs.config, state.inputs, state.phases[: state.number + 1]
    asked = pool_tokens(config) if config.data.blend else {"sft": float(config.train.train_tokens or 0)}
    counters = (SourceCounter([phase], [data]) for phase, data in zip(phases, state.datasets, strict=False))
    seen = [counter.up_to(state.step) for counter in counters]
    by_phase = {
        phase.name: folders.PhaseCounts(
            steps=min(state.step, phase.last_step) - phase.first_step, tokens_by_source=own
        )
        for phase, own in zip(phases, seen, strict=True)
    }
    counts = folders.RunCounts(
        step=state.step,
        steps=state.step,
        consumed_samples=state.phase.samples(state.step),
        consumed_tokens=state.phase.tokens(state.step),
        skipped_steps=tuple(state.guard.state.skipped),
        begin=inputs.begin,
        tokens_by_source={
            pool: folders.SourceTokens(
                asked=round(tokens),
                seen=sum(own.get(pool, 0) for own in seen),
                available=inputs.available.get(pool, 0),
            )
            for pool, tokens in asked.items()
        },
    )
    # Both only where they say something: older manifests have neither.
    more = {"phases": by_phase if config.phases else {}, "seen_before": dict(inputs.seen)}
    return counts.model_copy(update={name: found for name, found in more.items() if found})


def check_initial_loss(state: TrainState, heartbeat: Callable[[], None]) -> None:
    """Compare the loss of the first samples with `init.initial_loss`; `CheckpointError` outside the band."""
    init = state.config.init
    if init.initial_loss is None or state.step:  # a resumed run passed the gate at its start
        return
    # A few samples, not a global batch: the reference runs on one rank while all others wait.
    samples = Subset(state.dataset, range(min(init.initial_loss_samples, len(state.dataset))))
    (loss,) = mean_losses(state, [samples])
    heartbeat()
    expected, source = init.initial_loss, "init.initial_loss"
    if expected == "transformers":
        assert state.inputs.hf is not None
        rows, source = state.inputs.new_rows, "transformers"
        expected = transformers_loss(state.inputs.hf, rows, samples, state.layout, heartbeat)
    if not abs(loss - expected) <= init.initial_loss_band:  # so that NaN fails too
        far = f"is not within {init.initial_loss_band:g} of {expected:.4f} ({source})"
        fault = "starting weights, tokenizer or data do not fit"
        raise CheckpointError(f"initial loss {loss:.4f} {far}; {fault}")
    if state.layout.is_writer:
        size = len(samples)
        logger.info("initial loss of %d samples: %.4f, expected %.4f (%s)", size, loss, expected, source)


def transformers_loss(
    folder: Path, new_rows: range, samples: Samples, layout: Layout, heartbeat: Callable[[], None]
) -> float:
    """Loss per token of the Hugging Face weights on `samples`, computed by rank 0; all ranks call it.

    Its `new_rows`, which the weights lack, are the same means as the run's.
    """
    reference = _reference(folder, new_rows, layout.device) if layout.is_writer else None
    total = torch.zeros(2, dtype=torch.float64)
    for index in range(len(samples)):
        sums = torch.zeros(2, dtype=torch.float64, device=layout.device)
        if reference is not None:
            sample = samples[index]
            numbers = sample.get("documents", torch.zeros_like(sample["tokens"])).to(layout.device)
            sums = _reference_sums(reference, Batch.collate([sample]).to(layout.device), numbers[None])
        dist.broadcast(sums, src=0)
        total += sums.cpu()  # a sync, so that each rank's heartbeat means that rank 0 has finished the sample
        heartbeat()
    return mean_loss(total.tolist())


def _reference(folder: Path, new_rows: range, device: torch.device) -> "PreTrainedModel":
    """Load transformers' model into host memory; a layer is on `device`, in fp32, for its forward only."""
    # The run's own model is on it too. One fp32 layer, the activations of one sample and the logits of some
    # positions are 5 GB for Llama-3-8B at 8192 tokens, less than a later training step.
    model = load_reference(folder, new_rows, dtype="auto").eval()
    model.model.rotary_emb.to(device)
    for part in (model.model.embed_tokens, *model.model.layers, model.model.norm):
        part.forward = _in_fp32(part, device)(part.forward)
    return model


@torch.no_grad()
def _reference_sums(model: "PreTrainedModel", batch: Batch, documents: torch.Tensor) -> torch.Tensor:
    """[loss sum, tokens] of a one-sample batch in float64; attention stays within its `documents`."""
    # Always pass a mask (True where attention is allowed): with grouped queries in fp32 and none, PyTorch may
    # choose a kernel that materialises all attention scores.
    masks = _masks(model, document_mask(documents))
    hidden = model.model(batch.tokens, attention_mask=masks, use_cache=False).last_hidden_state
    with _in_fp32(model.lm_head, batch.tokens.device):
        pieces = zip(hidden[0].split(_ROWS), batch.labels[0].split(_ROWS), strict=True)
        losses = [cross_entropy(model.lm_head(rows), labels, reduction="none") for rows, labels in pieces]
    counted = batch.loss_mask[0].double()
    return torch.stack([(torch.cat(losses).double() * counted).sum(), counted.sum()])


def _masks(model: "PreTrainedModel", seen: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask `seen` in the form that a model takes, narrowed to its window in layers that have one."""
    window, kinds = getattr(model.config, "sliding_window", None), getattr(model.config, "layer_types", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return seen
    narrow = seen & torch.ones_like(seen).triu(1 - window)
    return {"full_attention": seen, "sliding_attention": narrow} if kinds else narrow


@contextmanager
def _in_fp32(part: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Have `part`'s parameters in fp32 on `device` inside the context; also used as a decorator."""
    stored = {parameter: parameter.data for parameter in part.parameters()}
    for parameter, weights in stored.items():
        parameter.data = weights.to(device).float()
    yield
    for parameter, weights in stored.items():
        parameter.data = weights
