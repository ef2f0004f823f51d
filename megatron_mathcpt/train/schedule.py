"""Learning rate as a pure function of consumed samples, so that a resumed run needs no state for it."""

import math

from megatron_mathcpt.config.experiment import OptimizerSection, ScheduleSection


def learning_rate(
    schedule: ScheduleSection, optimizer: OptimizerSection, consumed_samples: int, train_samples: int
) -> float:
    """Learning rate of the step that brings the count to `consumed_samples` of `train_samples`.

    Linear warm-up from 0 over `lr_warmup_fraction`, then constant, or down to `min_lr` at the end: in a
    straight line, along half a cosine, or (wsd) constant first and a straight line over the last
    `lr_wsd_decay_fraction` (arXiv 2404.06395).
    """
    progress = min(1.0, consumed_samples / train_samples)
    warmup = schedule.lr_warmup_fraction
    if progress < warmup:
        return optimizer.lr * progress / warmup
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * _height(schedule, progress)


def _height(schedule: ScheduleSection, progress: float) -> float:
    """Share of the way from `min_lr` to `lr` that is left."""
    decayed = (progress - schedule.lr_warmup_fraction) / (1.0 - schedule.lr_warmup_fraction)
    match schedule.lr_decay_style:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - decayed
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * decayed))
        case "wsd":
            return min(1.0, (1.0 - progress) / schedule.lr_wsd_decay_fraction)
