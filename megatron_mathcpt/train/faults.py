"""Steps that must not be applied, and replicas that have drifted apart.

All of it is decided from numbers that every process has alike, so no process acts alone; what the decisions
depend on goes into the checkpoint, so a resumed run decides the same.
"""

import math
import statistics
from collections import Counter, deque
from typing import Any

import torch
import torch.distributed as dist

from megatron_mathcpt.config.experiment import FaultsSection
from megatron_mathcpt.errors import TrainingDiverged
from megatron_mathcpt.parallel import Layout

# A run that only skips is not training; OLMo-core's and our own experience with spikes is one or two.
_MOST_SKIPPED_IN_A_ROW = 10


class StepGuard:
    """Judges each step before it is applied, from its loss and gradient norm.

    The spike rule is OLMo-core's SkipStepOptimizer: above mean + sigma deviations of the last `spike_window`
    applied steps, once half a window is there. Skipped steps are no part of the window.
    """

    def __init__(self, settings: FaultsSection, kept: dict[str, Any] | None = None) -> None:
        kept = kept or {"losses": (), "norms": (), "in_a_row": 0, "skipped": ()}
        self._settings = settings
        self._losses = deque[float](kept["losses"], settings.spike_window)
        self._norms = deque[float](kept["norms"], settings.spike_window)
        self._in_a_row = int(kept["in_a_row"])
        self.skipped: list[int] = list(kept["skipped"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        windows = {"losses": list(self._losses), "norms": list(self._norms)}
        return windows | {"in_a_row": self._in_a_row, "skipped": list(self.skipped)}

    def judge(self, step: int, loss: float | None, norm: float) -> str | None:
        """Why step `step` is to be skipped, None to apply it; all processes get the same answer.

        The loss, which costs a reduction in every step, is there if `spike_sigma` is.
        Raises `TrainingDiverged` if the settings say stop, or after too many skips in a row.
        """
        reason = self._fault(loss, norm)
        if reason is None:
            self._in_a_row = 0
            if loss is not None:
                self._losses.append(loss)
                self._norms.append(norm)
            return None
        self.skipped.append(step)
        self._in_a_row += 1
        if not math.isfinite(norm) and self._settings.non_finite == "stop":
            raise TrainingDiverged(f"{reason} at step {step}; no process applied the step")
        if self._in_a_row > _MOST_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(f"{reason} at step {step}, the {self._in_a_row}th skipped in a row")
        return reason

    def _fault(self, loss: float | None, norm: float) -> str | None:
        if not math.isfinite(norm):
            return "gradient norm is not finite"
        sigma = self._settings.spike_sigma
        if loss is None or sigma is None or len(self._losses) < self._settings.spike_window // 2:
            return None
        for name, value, window in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            limit = statistics.fmean(window) + sigma * statistics.stdev(window)
            if not value <= limit:
                return f"{name} {value:.4g} is above {limit:.4g}, {sigma:g} deviations over the last steps"
        return None


def check_replicas(model: list[Any], layout: Layout, step: int) -> None:
    """Compare the bits of weights that several processes hold; all ranks call it, parameters gathered.

    Data- and context-parallel replicas must agree in all weights, tensor-parallel ranks in those that are not
    cut. Raises `TrainingDiverged` naming the ranks.
    """
    weights = [weight for chunk in model for weight in chunk.parameters()]
    shared = [weight for weight in weights if not getattr(weight, "tensor_model_parallel", False)]
    odd = _odd_ranks(_bits(weights, layout.device), layout.groups.dp_cp)
    odd |= _odd_ranks(_bits(shared, layout.device), layout.groups.tp)
    everyone: list[set[int]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everyone, odd)
    if found := sorted(set().union(*everyone)):
        raise TrainingDiverged(
            f"after step {step} the weights of rank{'s' * (len(found) > 1)} {', '.join(map(str, found))} "
            "differ from their replicas'; a device or link corrupts data: leave it out, and start again from "
            "the last checkpoint"
        )


def _bits(weights: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Sum of all bytes' int16 or int32 patterns, each tensor weighted by its place; wraps around."""
    total = torch.zeros(1, dtype=torch.int64, device=device)
    for place, weight in enumerate(weights):
        pattern = weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32)
        total += (2 * place + 1) * pattern.sum(dtype=torch.int64)
    return total


def _odd_ranks(value: torch.Tensor, group: Any) -> set[int]:
    """Global ranks of `group` whose value is not that of most; all of them if there is no majority."""
    values = [torch.zeros_like(value) for _ in range(group.size())]
    dist.all_gather(values, value, group=group)
    found = [int(other) for other in values]
    most, count = Counter(found).most_common(1)[0]
    right = most if count > len(found) / 2 else None
    return {dist.get_global_rank(group, place) for place, other in enumerate(found) if other != right}
