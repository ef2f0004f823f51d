"""All legal layouts of a model on some GPUs, ranked by predicted step time, and why the others lose."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

from rich.table import Table

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.planner.layout import (
    FUSIONS,
    OPTIMIZER,
    SIZES,
    Layout,
    Recompute,
    Training,
    illegal,
    with_head_as_layer,
)
from megatron_mathcpt.planner.machine import Hardware, Machine, check_precision
from megatron_mathcpt.planner.memory import GIB, StageMemory, memory_per_stage, peak_memory
from megatron_mathcpt.planner.shapes import ModelShape, flops_per_token
from megatron_mathcpt.planner.step_time import StepTime, speed, step_time

# What the formulae leave out (CUDA context, NCCL, fragmentation) and their own error fit into the rest.
MEMORY_SHARE = 0.9
_MICRO_BATCHES = (1, 2, 4, 8)
_LOSSES = "loses by"


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
        largest = max(self.memory.parts, key=lambda name: self.memory.parts[name])
        return f"{self.excess_gib:.1f} GiB too much on stage {self.memory.stage}, most of it {largest}"


@dataclass(frozen=True)
class SearchResult:
    """Plans from fastest to slowest, misfits from closest to farthest, refused layouts counted by reason."""

    shape: ModelShape
    training: Training
    machine: Machine
    plans: tuple[Plan, ...]
    misfits: tuple[Misfit, ...]
    refused: Mapping[str, int]


def search(
    shape: ModelShape, training: Training, gpus: int, machine: Machine, *, limit_gib: float | None = None
) -> SearchResult:
    """Rank every layout of `gpus` GPUs that fits into `limit_gib` (default 90 % of the card)."""
    hardware = machine.hardware
    limit = MEMORY_SHARE * hardware.memory_gib if limit_gib is None else limit_gib
    check_precision(training.precision, hardware.capability)
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
    return SearchResult(shape, training, machine, tuple(plans), tuple(misfits), refused)


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
    for recompute in get_args(Recompute):
        chosen = replace(layout, recompute=recompute)
        memory = peak_memory(shape, training, chosen)
        if memory.gib <= limit:
            break
    return chosen, memory


def why_slower(plan: Plan, best: Plan) -> str:
    """The two terms in which `plan` loses most against `best`, in percent of the best's step."""
    total = best.time.total
    shares = {name: (plan.time.terms[name] - value) / total for name, value in best.time.terms.items()}
    worst = sorted(shares.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} +{100 * share:.1f} %" for name, share in worst if share > 1e-3)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def describe(
    result: SearchResult, config: ExperimentConfig, *, train_tokens: float, top: int
) -> Iterator[Table | str]:
    """A search for `config` as tables: the best layouts, memory and step of the first, why others lose."""
    flops = flops_per_token(result.shape, result.training.seq_length)
    yield (
        f"{result.shape.name}: {result.shape.total / 1e9:.2f} B parameters, "
        f"{flops.causal / 1e9:.1f} GFLOP a token with causal attention ({flops.full / 1e9:.1f} with full)"
    )
    if result.plans:
        yield _ranking(result, top, train_tokens)
        yield _memory_table(result)
        yield _step_table(result.plans[0])
        yield "Settings of a run: " + " ".join(settings(result.plans[0].layout, config))
    yield f"{len(result.plans)} layouts fit, {len(result.misfits)} do not."
    for misfit in result.misfits[:3]:
        yield f"  closest miss: {misfit.layout.name}: {misfit.reason}"
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1]):
        yield f"  {count} refused: {reason}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of numbers, after a first column of names."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(columns):
        names = place == 0 or heading == _LOSSES
        table.add_column(heading, justify="left" if names else "right", no_wrap=heading == "layout")
    for row in rows:
        table.add_row(*row)
    return table


def _ranking(result: SearchResult, top: int, train_tokens: float) -> Table:
    rows = []
    for plan in result.plans[:top]:
        seconds, gpus = plan.time.total, plan.layout.gpus
        hardware = result.machine.hardware
        found = speed(result.shape, result.training, hardware, seconds=seconds, gpus=gpus)
        hours = train_tokens / result.training.tokens_per_step * seconds / 3600
        rows.append(
            (
                plan.layout.name,
                *(f"{plan.memory.gib:.1f}", f"{seconds:.2f}", f"{found.tokens_per_second_per_gpu:,.0f}"),
                *(f"{found.tflops_causal:.0f}", f"{100 * found.mfu:.1f}"),
                *(f"{hours / 24:.2f}", f"{hours * gpus:,.0f}", why_slower(plan, result.plans[0])),
            )
        )
    title = "Layouts that fit, fastest first (MFU: causal attention, bf16 peak)"
    columns = ("layout", "GiB", "step s", "tok/s/GPU", "TFLOP/s", "MFU %", "days", "GPU-h", _LOSSES)
    return _table(title, columns, rows)


def _memory_table(result: SearchResult) -> Table:
    """Memory of the best plan's stages that differ most: the first two and the last."""
    layout = result.plans[0].layout
    stages = memory_per_stage(result.shape, result.training, layout)
    shown = stages if len(stages) <= 4 else [*stages[:2], stages[len(stages) // 2], stages[-1]]
    names = [name for name in shown[0].parts if any(stage.parts[name] for stage in shown)]
    rows = (
        (str(stage.stage), *(f"{stage.parts[name] / GIB:.1f}" for name in names), f"{stage.gib:.1f}")
        for stage in shown
    )
    return _table(f"Memory of {layout.name}, GiB", ("stage", *names, "total"), rows)


def _step_table(plan: Plan) -> Table:
    terms = {**plan.time.terms, "total": plan.time.total}
    shares = {name: f"{100 * seconds / plan.time.total:.1f} %" for name, seconds in terms.items() if seconds}
    rows = ((name, f"{terms[name]:.3f}", share) for name, share in shares.items())
    return _table(f"One step of {plan.layout.name}, slowest stage", ("term", "seconds", "share"), rows)


def settings(layout: Layout, config: ExperimentConfig) -> list[str]:
    """Overrides that give a training config a layout of the search, and what the search was given."""
    virtual, sharded = layout.virtual_pipeline_model_parallel_size, config.parallel.use_distributed_optimizer
    parallel: dict[str, Any] = {
        **{name: getattr(layout, name) for name in SIZES},
        "virtual_pipeline_model_parallel_size": None if virtual == 1 else virtual,
        "sequence_parallel": layout.sequence_parallel,
        "use_distributed_optimizer": sharded,
        **config.parallel.model_dump(include=set(FUSIONS), exclude_defaults=True),
        "overlap_grad_reduce": layout.replicas > 1,
        "overlap_param_gather": layout.replicas > 1 and sharded,
    }
    if layout.stage_layers:  # a search knows no other uneven stages
        parallel |= {f"account_for_{part}_in_pipeline_split": True for part in ("embedding", "loss")}
    if layout.recompute == "mlp":
        parallel |= {"recompute_granularity": "selective", "recompute_modules": "[mlp]"}
    elif layout.recompute == "full":
        parallel |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    if config.parallel.tp_comm_overlap and layout.tensor_model_parallel_size > 1:
        parallel["tp_comm_overlap"] = True
    precision = config.precision
    ends = {"first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"}
    unused = set() if precision.first_last_layers_bf16 else ends
    train = config.train.model_copy(update={"micro_batch_size": layout.micro_batch_size})
    sections: dict[str, dict[str, Any]] = {
        "parallel": parallel,
        "optimizer": config.optimizer.model_dump(include=set(OPTIMIZER), exclude_defaults=True),
        "precision": precision.model_dump(exclude=unused) if precision.fp8 else {},
        "train": train.model_dump(include={"seq_length", "micro_batch_size", "global_batch_size"}),
    }
    return [
        f"{section}.{name}={'null' if value is None else str(value).lower()}"
        for section, values in sections.items()
        for name, value in values.items()
    ]
