"""All valid layouts of a model on a number of GPUs, ranked by step time, and what slows the rest."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from pydantic import JsonValue

from megatron_mathcpt.config.base import build_config
from megatron_mathcpt.config.cross_checks import check_experiment, divisions
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.log import figure
from megatron_mathcpt.planner.machine import Machine, check_recipe
from megatron_mathcpt.planner.memory import GIB, StageMemory, memory_per_stage, peak_memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import ModelShape, flops_per_token
from megatron_mathcpt.planner.step_time import StepTime, speed, step_time

# The rest is for what the formulae leave out (CUDA context, NCCL, fragmentation) and for their error.
MEMORY_SHARE = 0.9
_MICRO_BATCHES = (1, 2, 4, 8)
_FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
_SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ("mlp",)}
_RECOMPUTE: list[Mapping[str, object]] = [{}, _SELECTIVE, _FULL]  # from light to heavy
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_FUSIONS = ("grad_reduce_in_fp32", "gradient_accumulation_fusion", "cross_entropy_loss_fusion")
_OVERLAPS = ("overlap_grad_reduce", "overlap_param_gather")
_COUNTED = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
_OPTIMIZER = ("use_precision_aware_optimizer", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
# Fields of the section parallel that a plan prints: always, and only if they are set, in this order.
_ALWAYS = (*_SIZES, "virtual_pipeline_model_parallel_size", "sequence_parallel", "use_distributed_optimizer")
_PRINTED = (*_ALWAYS, *_FUSIONS, *_OVERLAPS, *_COUNTED, *_FULL, "recompute_modules", "tp_comm_overlap")
# Fields that overrides of a search may set, in addition to the section precision.
_GIVEN = [f"optimizer.{name}" for name in _OPTIMIZER]
_GIVEN += [f"parallel.{name}" for name in ("use_distributed_optimizer", *_FUSIONS, "tp_comm_overlap")]
Table = tuple[str, Sequence[str], Sequence[Sequence[str | float]]]  # title, headings, rows


def given_config(
    shape: ModelShape, overrides: Sequence[str], *, seq_length: int, global_batch_size: int
) -> ExperimentConfig:
    """Return the fixed part of a search: a bf16 run with the distributed optimizer, with `overrides`."""
    for override in overrides:
        field = override.partition("=")[0]
        if not field.startswith("precision.") and field not in _GIVEN:
            known = ", ".join(("precision.*", *_GIVEN))
            raise ConfigError(f"override '{override}': not a setting of a search; take one of {known}")
    # The names and numbers below satisfy the schema and have no influence on memory or time.
    batch = {"seq_length": seq_length, "global_batch_size": global_batch_size, "micro_batch_size": 1}
    tree: dict[str, JsonValue] = {
        **{"name": shape.name, "seed": 0, "init": {"hf": "weights"}, "checkpoint": {"interval": 1}},
        **{"data": {"corpus": "corpus", "blend": {"all": 1.0}}, "train": {"train_tokens": 1, **batch}},
        **{"optimizer": {"lr": 1.0}, "schedule": {"lr_decay_style": "constant"}},
        "parallel": {**dict.fromkeys(_SIZES, 1), "use_distributed_optimizer": True},
        "precision": {"params_dtype": "bf16"},
    }
    config = build_config(tree, ExperimentConfig, overrides, "search").model_copy(update={"model": shape})
    # Without the overlap: what it needs of the layout is the search's choice.
    check_experiment(_changed(config, tp_comm_overlap=False), 1)
    return config


class Plan(NamedTuple):
    run: PlannedRun
    memory: StageMemory
    time: StepTime


class SearchResult(NamedTuple):
    """All layouts: those that fit, those that do not, and those that a training run would refuse."""

    given: ExperimentConfig
    machine: Machine
    limit_gib: float
    plans: Sequence[Plan]  # from fastest to slowest
    misfits: Sequence[tuple[PlannedRun, StageMemory]]  # all layers recomputed; closest first
    refused: Mapping[str, int]  # their number by reason


def search(
    given: ExperimentConfig,
    gpus: int,
    machine: Machine,
    *,
    limit_gib: float | None = None,
    plan: Callable[[ExperimentConfig, int], PlannedRun] = PlannedRun,
) -> SearchResult:
    """Rank all layouts that fit into `limit_gib` (default 90 % of the card); calibration passes a `plan`."""
    limit = MEMORY_SHARE * machine.hardware.memory_gib if limit_gib is None else limit_gib
    check_recipe(given.precision.fp8_recipe, machine.hardware.capability)
    plans: list[Plan] = []
    misfits: list[tuple[PlannedRun, StageMemory]] = []
    refused: Counter[str] = Counter()
    for config in _layouts(given, gpus, machine.hardware.gpus_per_node):
        rules = [rule for rule in divisions(config, gpus) if rule.found % rule.divisor]
        if rules:
            refused[f"{rules[0].field} is not divisible by {rules[0].what}"] += 1
            continue
        for recompute in _RECOMPUTE:  # as little as fits
            run = plan(_changed(config, **recompute), gpus)
            memory = peak_memory(run)
            if memory.gib <= limit:
                plans.append(Plan(run, memory, step_time(run, machine)))
                break
        else:
            misfits.append((run, memory))
    plans.sort(key=lambda plan: plan.time.total)
    misfits.sort(key=lambda misfit: misfit[1].gib)
    return SearchResult(given, machine, limit, plans, misfits, refused)


def _changed(config: ExperimentConfig, **parallel: object) -> ExperimentConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})


def _layouts(given: ExperimentConfig, gpus: int, node: int) -> Iterator[ExperimentConfig]:
    # Tensor parallelism stays within a node; context parallelism is tried up to the same size.
    in_a_node = [2**power for power in range(node.bit_length())]
    micro_batches = [given.train.model_copy(update={"micro_batch_size": size}) for size in _MICRO_BATCHES]
    for tensor, context in product(in_a_node, in_a_node):
        left, rest = divmod(gpus, tensor * context)
        for stages in _divisors(left) if rest == 0 else ():
            replicas = gpus // (tensor * stages)
            overlaps = (replicas > 1, replicas > 1 and given.parallel.use_distributed_optimizer)
            cut = _changed(
                given,
                **dict(zip(_SIZES, (tensor, stages, context), strict=True)),
                **dict(zip(_OVERLAPS, overlaps, strict=True)),
                sequence_parallel=tensor > 1,
                tp_comm_overlap=given.parallel.tp_comm_overlap and tensor > 1,
            )
            for staged, train in product(_staged(cut, stages), micro_batches):
                yield staged.model_copy(update={"train": train})


def _staged(cut: ExperimentConfig, stages: int) -> Iterator[ExperimentConfig]:
    """Yield `cut` with every number of virtual stages, and with embedding and head as a layer each."""
    assert cut.model is not None
    for counted in (0, 2):
        counts = dict.fromkeys(_COUNTED, counted > 0)
        each, rest = divmod(cut.model.num_layers + counted, stages)
        if each <= counted / 2 or (counted and (stages == 1 or rest)):
            continue
        for virtual in _divisors(each) if stages > 1 and not rest else [1]:
            if counted and stages == 2 and virtual == 1:
                continue  # each of two stages gives one layer away: the same as the even cut
            size = None if virtual == 1 else virtual
            yield _changed(cut, virtual_pipeline_model_parallel_size=size, **counts)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _why_slower(plan: Plan, best: Plan) -> str:
    # The two terms in which `plan` loses most, in percent of the best's step.
    total = best.time.total
    shares = {name: (plan.time.terms[name] - value) / total for name, value in best.time.terms.items()}
    worst = sorted(shares.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} +{100 * share:.1f} %" for name, share in worst if share > 1e-3)


def describe(result: SearchResult, *, train_tokens: float, top: int) -> Iterator[Table | str]:
    """Yield tables and texts: best layouts, memory and step of the first, closest misses, refusals."""
    shape = result.given.model
    assert isinstance(shape, ModelShape)
    length = result.given.train.seq_length
    flops = flops_per_token(shape, length)
    model = f"{shape.name}: {shape.total / 1e9:.2f} B parameters, {flops.causal / 1e9:.1f} GFLOP a token"
    yield f"{model} at length {length:,} with causal attention ({flops.full / 1e9:.1f} with full)"
    if result.plans:
        best = result.plans[0]
        yield from (_ranking(result, top, train_tokens), _memory_table(best.run))
        total = best.time.total
        terms = {name: seconds for name, seconds in best.time.terms.items() if seconds} | {"total": total}
        rows = [(name, figure(value, ".3f"), 100 * value / total) for name, value in terms.items()]
        yield f"One step of {best.run.name}, slowest stage", ("term", "seconds", "share in %"), rows
        yield "Settings of a run: " + " ".join(settings(best.run.config))
    yield f"{len(result.plans)} layouts fit, {len(result.misfits)} do not."
    for run, memory in result.misfits[:3]:
        largest = max(memory.parts, key=lambda name: memory.parts[name])
        excess = f"{memory.gib - result.limit_gib:.1f} GiB too much on pipeline stage {memory.stage}"
        yield f"  closest miss: {run.name}: {excess}, most of it {largest}"
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1]):
        yield f"  {count} refused: {reason}"


def _ranking(result: SearchResult, top: int, train_tokens: float) -> Table:
    rows = list[tuple[str, ...]]()
    for plan in result.plans[:top]:
        seconds = plan.time.total
        found = speed(plan.run, result.machine.hardware, seconds)
        hours = train_tokens / result.given.train.tokens_per_step * seconds / 3600
        numbers = [plan.memory.gib, seconds, found.tokens_per_second_per_gpu, found.tflops_causal]
        numbers += [100 * found.mfu, hours / 24, hours * plan.run.gpus]
        shown = map(figure, numbers, (".1f", ".2f", ",.0f", ".0f", ".1f", ".2f", ",.0f"))
        rows.append((plan.run.name, *shown, _why_slower(plan, result.plans[0])))
    title = "Layouts that fit, fastest first (MFU: causal attention, bf16 peak)"
    columns = ("layout", "GiB", "step s", "tok/s/GPU", "TFLOP/s", "MFU %", "days", "GPU-h", "loses by")
    return title, columns, rows


def _memory_table(run: PlannedRun) -> Table:
    stages = memory_per_stage(run)
    # Those that differ most: the first two, one in the middle and the last.
    shown = stages if len(stages) <= 4 else [*stages[:2], stages[len(stages) // 2], stages[-1]]
    names = [name for name in shown[0].parts if any(stage.parts[name] for stage in shown)]
    rows = [(stage.stage, *(stage.parts[name] / GIB for name in names), stage.gib) for stage in shown]
    return f"Memory of {run.name}, GiB", ("stage", *names, "total"), rows


def settings(config: ExperimentConfig) -> list[str]:
    """Return the overrides that give a training config a plan's layout and the fixed part of its search."""
    precision, changed = config.precision, config.parallel.model_dump(exclude_defaults=True)
    always = {name: getattr(config.parallel, name) for name in (*_ALWAYS, *_OVERLAPS)}
    parallel = always | changed
    ends = {"first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"}
    unused = set() if precision.first_last_layers_bf16 else ends
    sections: dict[str, Mapping[str, object]] = {
        "parallel": {name: parallel[name] for name in _PRINTED if name in parallel},
        "optimizer": config.optimizer.model_dump(include=set(_OPTIMIZER), exclude_defaults=True),
        "precision": precision.model_dump(exclude=unused) if precision.fp8 else {},
        "train": config.train.model_dump(include={"seq_length", "micro_batch_size", "global_batch_size"}),
    }
    return [
        f"{section}.{name}=" + json.dumps(value).replace('"', "")
        for section, values in sections.items()
        for name, value in values.items()
    ]
