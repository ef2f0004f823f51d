"""All legal layouts of a model on some GPUs, ranked by predicted step time, and why the others lose."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Layout, Recompute, Training, illegal, with_head_as_layer
from megatron_mathcpt.planner.machine import Hardware, Machine
from megatron_mathcpt.planner.memory import StageMemory, peak_memory
from megatron_mathcpt.planner.shapes import ModelShape
from megatron_mathcpt.planner.step_time import StepTime, step_time

# What the formulae leave out (CUDA context, NCCL, fragmentation) and their own error fit into the rest.
MEMORY_SHARE = 0.9
_MICRO_BATCHES = (1, 2, 4, 8)
_RECOMPUTES: tuple[Recompute, ...] = ("none", "mlp", "full")


@dataclass(frozen=True)
class Plan:
    """A layout that fits, with its prediction."""

    layout: Layout
    memory: StageMemory
    time: StepTime


@dataclass(frozen=True)
class Misfit:
    """A layout that does not fit even with every layer recomputed."""

    layout: Layout
    memory: StageMemory
    excess_gib: float

    @property
    def reason(self) -> str:
        """One phrase: by how much, where, and the largest part."""
        largest = max(self.memory.parts, key=lambda name: self.memory.parts[name])
        return f"{self.excess_gib:.1f} GiB too much on stage {self.memory.stage}, most of it {largest}"


@dataclass(frozen=True)
class SearchResult:
    """Plans from fastest to slowest, misfits from closest to farthest, refused layouts counted by reason."""

    plans: tuple[Plan, ...]
    misfits: tuple[Misfit, ...]
    refused: Mapping[str, int]


def search(
    shape: ModelShape, training: Training, gpus: int, machine: Machine, *, limit_gib: float | None = None
) -> SearchResult:
    """Rank every layout of `gpus` GPUs that fits into `limit_gib` (default 90 % of the card)."""
    hardware = machine.hardware
    limit = MEMORY_SHARE * hardware.memory_gib if limit_gib is None else limit_gib
    check_precision(training, hardware)
    plans: list[Plan] = []
    misfits: list[Misfit] = []
    refused: Counter[str] = Counter()
    for layout in _layouts(shape, gpus, hardware):
        if reason := illegal(shape, training, layout):
            refused[reason] += 1
            continue
        chosen, memory = _lightest_recompute(shape, training, layout, limit)
        if memory.gib <= limit:
            plans.append(Plan(chosen, memory, step_time(shape, training, chosen, machine)))
        else:
            misfits.append(Misfit(chosen, memory, memory.gib - limit))
    plans.sort(key=lambda plan: plan.time.total)
    misfits.sort(key=lambda misfit: misfit.excess_gib)
    return SearchResult(tuple(plans), tuple(misfits), refused)


def check_precision(training: Training, hardware: Hardware) -> None:
    """Raise `ConfigError` where the GPU cannot multiply in the precision of `training`."""
    if training.is_fp8 and hardware.fp8_tflops is None:
        raise ConfigError(f"precision {training.precision}: this GPU has no FP8; choose bf16")
    if training.precision == "fp8_mx" and not hardware.mxfp8:
        raise ConfigError("precision fp8_mx: needs Blackwell; choose fp8_recipe blockwise on this GPU")
    if training.precision == "fp8_blockwise" and hardware.mxfp8:
        raise ConfigError("precision fp8_blockwise: is for Hopper; choose fp8_recipe mxfp8 on this GPU")


def _layouts(shape: ModelShape, gpus: int, hardware: Hardware) -> Iterator[Layout]:
    """Every cut of `gpus`; tensor parallelism stays inside a node."""
    node = hardware.gpus_per_node
    in_a_node = [2**power for power in range(node.bit_length())]
    for tensor, context in product(in_a_node, in_a_node):
        left, rest = divmod(gpus, tensor * context)
        for stages in _divisors(left) if rest == 0 else ():
            if stages <= shape.num_layers:
                sizes = (tensor, stages, context, left // stages)
                yield from _batched(shape, Layout(*sizes, sequence_parallel=tensor > 1))


def _batched(shape: ModelShape, base: Layout) -> Iterator[Layout]:
    """`base` with every number of virtual stages and micro-batch size, also with the head as a layer."""
    stages = base.pipeline_model_parallel_size
    cuts = [(base, shape.num_layers)]
    if stages > 1 and (shape.num_layers + 2) % stages == 0 and (shape.num_layers + 2) // stages > 1:
        cuts.append((with_head_as_layer(base, shape), shape.num_layers + 2))
    for cut, slots in cuts:
        virtuals = _divisors(slots // stages) if stages > 1 and slots % stages == 0 else [1]
        if len(set(cut.stage_layers or ())) == 1:
            virtuals = virtuals[1:]  # without interleaving the same as the even cut
        for virtual, micro_batch in product(virtuals, _MICRO_BATCHES):
            yield replace(cut, virtual_pipeline_model_parallel_size=virtual, micro_batch_size=micro_batch)


def _lightest_recompute(
    shape: ModelShape, training: Training, layout: Layout, limit: float
) -> tuple[Layout, StageMemory]:
    """`layout` with as little recomputation as fits; the heaviest if none does."""
    for recompute in _RECOMPUTES:
        chosen = layout if recompute == "none" else replace(layout, recompute=recompute)
        memory = peak_memory(shape, training, chosen)
        if memory.gib <= limit:
            break
    return chosen, memory


def why_slower(plan: Plan, best: Plan, terms: int = 2) -> str:
    """The terms in which `plan` loses most against `best`, in percent of the best's step."""
    losses = {name: plan.time.terms.get(name, 0.0) - value for name, value in best.time.terms.items()}
    worst = sorted(losses.items(), key=lambda item: -item[1])[:terms]
    shares = [(name, loss / best.time.total) for name, loss in worst]
    return ", ".join(f"{name} +{100 * share:.1f} %" for name, share in shares if share > 1e-3)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
