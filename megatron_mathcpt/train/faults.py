"""Skip or stop on steps that must not be applied, and find replicas that have drifted apart.

Every decision uses numbers that are equal on all processes, so all decide alike; the state that decisions
depend on is saved in the checkpoint, so a resumed run decides the same.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from pydantic import BaseModel

from megatron_mathcpt.config.experiment import FaultsSection
from megatron_mathcpt.errors import TrainingDiverged
from megatron_mathcpt.parallel import Layout

# A run that only skips is not training. Spikes last one or two steps, in OLMo-core's experience and ours.
_MOST_SKIPPED_IN_A_ROW = 10


class GuardState(BaseModel):
    """What a guard remembers, and a checkpoint stores; losses and norms are the last applied steps'."""

    losses: list[float] = []
    norms: list[float] = []
    in_a_row: int = 0
    skipped: list[int] = []


@dataclass
class StepGuard:
    """Judges each step before it is applied, from its loss and gradient norm.

    The spike rule is OLMo-core's SkipStepOptimizer: above mean + sigma deviations of the last `spike_window`
    applied steps, once half a window has been seen.
    """

    settings: FaultsSection
    state: GuardState = field(default_factory=GuardState)

    def __post_init__(self) -> None:
        length = self.settings.spike_window  # in a resumed run perhaps shorter than when it was saved
        self.state.losses, self.state.norms = self.state.losses[-length:], self.state.norms[-length:]

    def judge(self, step: int, loss: float | None, norm: float) -> str | None:
        """Return why `step` must be skipped, None to apply it; raises `TrainingDiverged` to stop the run."""
        state, length = self.state, self.settings.spike_window
        reason = self._fault(loss, norm)
        if reason is None:
            state.in_a_row = 0
            if loss is not None:  # only applied steps: one spike in the window would hide the next
                state.losses = [*state.losses, loss][-length:]
                state.norms = [*state.norms, norm][-length:]
            return None
        state.skipped.append(step)
        state.in_a_row += 1
        if not math.isfinite(norm) and self.settings.non_finite == "stop":
            raise TrainingDiverged(f"{reason} at step {step}; no process applied the step")
        if state.in_a_row > _MOST_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(f"{reason} at step {step}, the {state.in_a_row}th skipped in a row")
        return reason

    def _fault(self, loss: float | None, norm: float) -> str | None:
        if not math.isfinite(norm):
            return "gradient norm is not finite"
        sigma, state = self.settings.spike_sigma, self.state
        if loss is None or sigma is None or len(state.losses) < self.settings.spike_window // 2:
            return None
        for name, value, window in (("loss", loss, state.losses), ("gradient norm", norm, state.norms)):
            limit = statistics.fmean(window) + sigma * statistics.stdev(window)
            if not value <= limit:  # so that a NaN counts as a spike
                return f"{name} {value:.4g} is above {limit:.4g}, {sigma:g} deviations over the last steps"
        return None


def check_replicas(model: Iterable[torch.nn.Module], layout: Layout, step: int) -> None:
    """Compare replicas' weights, after a gather; `TrainingDiverged` names the ranks that differ."""
    # Data- and context-parallel replicas must agree in all weights, tensor-parallel ranks in unsharded ones.
    weights = [weight for chunk in model for weight in chunk.parameters()]
    shared = [weight for weight in weights if not getattr(weight, "tensor_model_parallel", False)]
    mismatched = _mismatched_ranks(_checksum(weights, layout.device), layout.groups.dp_cp)
    mismatched |= _mismatched_ranks(_checksum(shared, layout.device), layout.groups.tp)
    # All ranks must raise: those that found nothing would hang in the next step.
    everyone: list[set[int]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everyone, mismatched)
    if found := sorted(set().union(*everyone)):
        ranks = f"rank{'s' * (len(found) > 1)} {', '.join(map(str, found))}"
        differ = f"after step {step} the weights of {ranks} differ from their replicas'"
        remedy = "a device or link corrupts data: exclude it, and restart from the last checkpoint"
        raise TrainingDiverged(f"{differ}; {remedy}")


def _checksum(weights: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Sum of all bit patterns; as integers, which add up to the same in any order, unlike floats."""
    total = torch.zeros(1, dtype=torch.int64, device=device)
    for place, weight in enumerate(weights):
        pattern = weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32)
        total += (2 * place + 1) * pattern.sum(dtype=torch.int64)  # odd factors: tensors swapped are noticed
    return total


def _mismatched_ranks(value: torch.Tensor, group: dist.ProcessGroup) -> set[int]:
    """Global ranks of `group` whose value is not the majority's; all of them if there is no majority."""
    found = [0] * group.size()
    dist.all_gather_object(found, int(value), group=group)
    most, count = Counter(found).most_common(1)[0]
    majority = most if count > len(found) / 2 else None
    return {dist.get_global_rank(group, place) for place, other in enumerate(found) if other != majority}
