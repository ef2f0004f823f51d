"""One optimizer step, and one pass without gradients: Megatron-Core's schedules over our microbatches."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_mathcpt.config.experiment import OptimizerSection, ScheduleSection
from megatron_mathcpt.model.llama import has_transformer_engine
from megatron_mathcpt.train.components import TrainState, one_or_all
from megatron_mathcpt.train.datasets import Batch, microbatches


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step: [loss sum, tokens] of this process in float64, and the gradient norm of all.

    Further rows of `losses` have the same two of each pool, if that was asked for. `loader_seconds` is how
    long this process waited for its samples; `skipped` why the step was not applied.
    """

    losses: torch.Tensor
    grad_norm: float
    loader_seconds: float
    skipped: str | None = None


def forward_step(
    batches: Iterator[Batch], model: Any, *, sources: int, waited: list[float]
) -> tuple[torch.Tensor, Any]:
    """Run one microbatch; Megatron-Core calls the returned loss function on the last stage."""
    begun = time.perf_counter()
    batch = next(batches)
    waited.append(time.perf_counter() - begun)
    output = model(
        batch.tokens, batch.position_ids, batch.mask, labels=batch.labels, packed_seq_params=batch.documents
    )
    return output, partial(masked_loss, batch, sources)


def masked_loss(
    batch: Batch, sources: int, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the losses under the mask, their number, and both for the report; no mean of means.

    The report has a row [sum, number] of the batch, and then one of each of the `sources` pools.
    """
    masked = losses.float() * batch.loss_mask
    total, count = masked.sum(), batch.loss_mask.sum()
    report = torch.stack([total.detach().double(), count.double()])[None]
    if sources:
        assert batch.sources is not None
        both = torch.stack([masked.detach(), batch.loss_mask], dim=-1).double().flatten(0, 1)
        by_source = torch.zeros(sources, 2, dtype=torch.float64, device=losses.device)
        report = torch.cat([report, by_source.index_add(0, batch.sources.flatten(), both)])
    return total, count.int(), report


def train_step(state: TrainState, consumed_samples: int, learning_rate: float) -> StepResult:
    """Forward, backward and, if the state's guard allows it, update on the batch after `consumed_samples`."""
    for chunk in state.model:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    size, waited = state.config.train.global_batch_size, list[float]()
    losses = run_schedule(state, state.dataset, consumed_samples, size, waited)
    norm = state.layout.largest(prepare_gradients(state.optimizer, state.config.optimizer, learning_rate))
    mean = reduce_losses([losses[0]])[0] if state.config.faults.spike_sigma else None
    skipped = state.guard.judge(state.step + 1, mean, norm)
    if skipped is None:
        state.saver.wait_for_copy()
        state.optimizer.step_with_ready_grads()
    return StepResult(losses, norm, sum(waited), skipped)


def prepare_gradients(
    optimizer: MegatronOptimizer, settings: OptimizerSection, learning_rate: float
) -> float:
    """Set rate and decay, clip; the norm before clipping, of the gradients this process can see."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
    overflow = optimizer.prepare_grads()
    norm = optimizer.clip_grad_norm(settings.clip_grad) if settings.clip_grad else optimizer.get_grad_norm()
    return math.nan if overflow else float(norm)


def reduce_losses(losses: list[torch.Tensor]) -> list[float]:
    """Mean loss per token of each [loss sum, tokens] pair, summed over all processes at once."""
    sums = torch.stack(losses)
    dist.all_reduce(sums)
    return [mean_loss(pair) for pair in sums.tolist()]


def mean_loss(pair: list[float]) -> float:
    """Loss per token of a [loss sum, tokens] pair; 0 without tokens."""
    total, tokens = pair
    return total / max(tokens, 1.0)


def mean_losses(state: TrainState, datasets: Iterable[Any]) -> list[float]:
    """Mean loss per token of each dataset, the same number in every layout; nothing is changed."""
    with torch.no_grad():
        for chunk in state.model:
            chunk.eval()
        losses = [run_schedule(state, dataset, 0, len(dataset))[0] for dataset in datasets]
        for chunk in state.model:
            chunk.train()
    return reduce_losses(losses)


def run_schedule(
    state: TrainState, dataset: Any, first: int, samples: int, waited: list[float] | None = None
) -> torch.Tensor:
    """Run the pipeline schedule over `samples` samples from `first`; [loss sum, tokens] of this process.

    In training a row of the same two of each pool follows, if the config asks for them, and `waited` gets the
    seconds that each microbatch was waited for; None runs forward only.
    """
    layout, sizes, config = state.layout, state.layout.sizes, state.config
    size, training = config.train.micro_batch_size, waited is not None
    stride = size * layout.data_size
    count = -(-samples // stride)
    if sizes.virtual_pipeline_model_parallel_size:  # its schedule wants whole rounds
        count = -(-count // sizes.pipeline_model_parallel_size) * sizes.pipeline_model_parallel_size
    wanted = range(first, first + count * stride)
    fused = config.data.document_attention and has_transformer_engine()
    sources = len(config.data.blend) if training and config.logging.loss_by_source else 0
    iterators = [microbatches(dataset, wanted, size, layout, fused=fused) for _ in state.model]
    reports = get_forward_backward_func()(
        forward_step_func=partial(forward_step, sources=sources, waited=[] if waited is None else waited),
        data_iterator=one_or_all(iterators),
        model=state.model,
        num_microbatches=count,
        seq_length=config.train.seq_length,
        micro_batch_size=size,
        forward_only=not training,
    )
    if not layout.reports_loss:
        return torch.zeros(1 + sources, 2, dtype=torch.float64, device=layout.device)
    return torch.stack(reports).sum(dim=0)


def learning_rate(
    schedule: ScheduleSection, optimizer: OptimizerSection, consumed_samples: int, train_samples: int
) -> float:
    """Learning rate of the step that brings the count to `consumed_samples` of `train_samples`.

    Linear warm-up from 0 over `lr_warmup_fraction`, then constant, or down to `min_lr` at the end: in a
    straight line, along half a cosine, or (wsd) constant first and a straight line over the last
    `lr_wsd_decay_fraction` (arXiv 2404.06395).
    """
    progress, warmup = min(1.0, consumed_samples / train_samples), schedule.lr_warmup_fraction
    if progress < warmup:
        return optimizer.lr * progress / warmup
    decayed = (progress - warmup) / (1.0 - warmup)
    match schedule.lr_decay_style:
        case "constant":
            left = 1.0
        case "linear":
            left = 1.0 - decayed
        case "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * decayed))
        case "wsd":
            left = min(1.0, (1.0 - progress) / schedule.lr_wsd_decay_fraction)
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * left
