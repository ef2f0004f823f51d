"""One optimizer step, and one forward-only pass: Megatron-Core's schedules over our microbatches.

Losses stay [loss sum, tokens] pairs until they are reported: a mean of means would weight tokens by layout.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_mathcpt.config.optimizer import OptimizerSection, ScheduleSection
from megatron_mathcpt.model.language_model import has_transformer_engine
from megatron_mathcpt.train.components import TrainState, one_or_all
from megatron_mathcpt.train.datasets import Batch, Samples, microbatches

# What Megatron-Core's schedule takes from a loss function: loss sum, int32 token count, report.
Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class StepResult:
    losses: torch.Tensor  # [loss sum, tokens] of this process in float64, then such a row per pool
    grad_norm: float  # the same on all processes
    loader_seconds: float  # how long this process waited for its samples
    skipped: str | None = None  # why the step was not applied


def forward_step(
    batches: Iterator[Batch], model: DistributedDataParallel, *, sources: int, waited: list[float]
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Loss]]:
    """Run one microbatch; Megatron-Core calls the returned loss function on the last pipeline stage."""
    begun = time.perf_counter()
    batch = next(batches)
    waited.append(time.perf_counter() - begun)
    documents = {"packed_seq_params": batch.documents}  # in place of an attention mask
    output = model(batch.tokens, batch.position_ids, None, labels=batch.labels, **documents)
    return output, partial(masked_loss, batch, sources)


def masked_loss(batch: Batch, sources: int, losses: torch.Tensor) -> Loss:
    """Sum the losses under the mask; the report has a [sum, tokens] row of the batch, then one per pool."""
    masked = losses.float() * batch.loss_mask
    total, count = masked.sum(), batch.loss_mask.sum()
    report = torch.stack([total.detach().double(), count.double()])[None]
    if sources:
        assert batch.sources is not None
        both = torch.stack([masked.detach(), batch.loss_mask], dim=-1).double().flatten(0, 1)
        by_source = torch.zeros(sources, 2, dtype=torch.float64, device=losses.device)
        report = torch.cat([report, by_source.index_add(0, batch.sources.flatten(), both)])
    # No division here. Backward runs on the sum; with `calculate_per_token_loss` (model/settings.py)
    # finalize_model_grads adds up the counts of all data- and context-parallel ranks and divides the
    # gradients once, so a context-parallel rank just sums its part of each sequence. A pair (loss, report)
    # would be taken for a local mean and multiplied by the context-parallel size (schedules.py).
    return total, count.int(), report


def train_step(state: TrainState, consumed_samples: int, rate: float) -> StepResult:
    """Forward, backward and, if the state's guard allows it, update on the batch after `consumed_samples`."""
    for chunk in state.model:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    batch = range(consumed_samples, consumed_samples + state.config.train.global_batch_size)
    losses, waited = run_schedule(state, state.dataset, batch, forward_only=False)
    # The guard must see the same numbers on every rank: one that skipped a step alone would differ from its
    # replicas for good. A NaN of one faulty device may be on its rank only, so take the largest norm.
    norm = state.layout.largest(prepare_gradients(state.optimizer, state.config.optimizer, rate))
    # The loss costs one more reduction and device sync a step: only with spike detection.
    mean = reduce_losses([losses[0]])[0] if state.config.faults.spike_sigma else None
    skipped = state.guard.judge(state.step + 1, mean, norm)
    if skipped is None:
        state.saver.wait_for_copy()  # forward and backward leave the weights alone, the update does not
        state.optimizer.step_with_ready_grads()
    return StepResult(losses, norm, waited, skipped)


def prepare_gradients(optimizer: MegatronOptimizer, settings: OptimizerSection, rate: float) -> float:
    """Set learning rate and weight decay and clip; return this process's norm from before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
    # `optimizer.step()` in its parts, since the guard decides between clipping and the update.
    overflow = optimizer.prepare_grads()
    norm = optimizer.get_grad_norm()
    # Not by `clip_grad_norm`, which Muon's chain of two optimizers lacks.
    for one in optimizer.chained_optimizers if settings.clip_grad else ():
        decoupled = one.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        if parameters := one.get_parameters():
            clip_grad_by_total_norm_fp32(parameters, settings.clip_grad, norm, decoupled)
    return math.nan if overflow else float(norm)


def reduce_losses(losses: list[torch.Tensor]) -> list[float]:
    """Mean loss per token of each [loss sum, tokens] pair of all processes, in one reduction."""
    sums = torch.stack(losses)
    dist.all_reduce(sums)
    return [mean_loss(pair) for pair in sums.tolist()]


def mean_loss(pair: list[float]) -> float:
    total, tokens = pair
    return total / max(tokens, 1.0)


def mean_losses(state: TrainState, datasets: Iterable[Samples]) -> list[float]:
    """Evaluate the mean loss per token of each dataset; the layout does not change the result."""
    with torch.no_grad():
        for chunk in state.model:
            chunk.eval()
        passes = [run_schedule(state, data, range(len(data)), forward_only=True) for data in datasets]
        for chunk in state.model:
            chunk.train()
    return reduce_losses([losses[0] for losses, _ in passes])


def run_schedule(
    state: TrainState, dataset: Samples, samples: range, *, forward_only: bool
) -> tuple[torch.Tensor, float]:
    """Run the pipeline schedule; return this process's losses, as in `StepResult`, and seconds of waiting."""
    layout, sizes, config = state.layout, state.layout.sizes, state.config
    size = config.train.micro_batch_size
    stride = size * layout.data_size
    count = -(-len(samples) // stride)
    if sizes.virtual_pipeline_model_parallel_size:
        # The interleaved schedule takes microbatches in rounds of one per pipeline stage.
        count = -(-count // sizes.pipeline_model_parallel_size) * sizes.pipeline_model_parallel_size
    rounded = range(samples.start, samples.start + count * stride)
    fused = config.data.document_attention and has_transformer_engine()
    # Validation sets and the gate's samples have one loss each, and no pool number for every token.
    sources = 0 if forward_only or not config.logging.loss_by_source else len(config.data.blend)
    waited: list[float] = []
    # One iterator a chunk: the interleaved schedule runs all microbatches through each, in turn.
    iterators = [microbatches(dataset, rounded, size, layout, fused=fused) for _ in state.model]
    reports = get_forward_backward_func()(
        forward_step_func=partial(forward_step, sources=sources, waited=waited),
        data_iterator=one_or_all(iterators),
        model=state.model,
        num_microbatches=count,
        seq_length=config.train.seq_length,
        micro_batch_size=size,
        forward_only=forward_only,
    )
    if layout.reports_loss:
        return torch.stack(reports).sum(dim=0), sum(waited)
    # Zeros, not nothing: the sum over all processes needs the same shape from each.
    return torch.zeros(1 + sources, 2, dtype=torch.float64, device=layout.device), sum(waited)


def learning_rate(
    schedule: ScheduleSection, optimizer: OptimizerSection, consumed_tokens: int, train_tokens: int
) -> float:
    """Learning rate of the step after which `consumed_tokens` of a schedule's `train_tokens` have been seen.

    Linear warm-up from 0, then constant, or decay to `min_lr` at the end: linear, cosine, or (wsd, arXiv
    2404.06395) constant and then decay over the last `lr_wsd_decay_fraction`. Its shapes are Megatron-LM's,
    with x from 0 to 1: linear 1 - x; cosine (1 + cos(pi x)) / 2; exponential 2 * 0.5^x - 1, a fall by half as
    in arXiv 2404.06395, stretched to reach the end; minus_sqrt 1 - sqrt(x) (arXiv 2405.18392).
    """
    # Not Megatron-Core's OptimizerParamScheduler: it has state to save, and this is a function of the step.
    progress, warmup = min(1.0, consumed_tokens / train_tokens), schedule.lr_warmup_fraction
    if progress < warmup:
        return optimizer.lr * progress / warmup
    decayed = (progress - warmup) / (1.0 - warmup)
    style: str = schedule.lr_decay_style
    if style == "wsd":
        style = schedule.lr_wsd_decay_style
        decayed = max(0.0, 1.0 - (1.0 - progress) / schedule.lr_wsd_decay_fraction)
    match style:
        case "constant":
            left = 1.0
        case "linear":
            left = 1.0 - decayed
        case "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * decayed))
        case "exponential":
            left = 2.0 * 0.5**decayed - 1.0
        case "minus_sqrt":
            left = 1.0 - math.sqrt(decayed)
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * left
