"""What a run will read, need and cost, predicted on any machine and before a GPU is allocated.

Token counts come from the corpus folder if it is built, else from `tokens` of the study's builds. Of models
that are only scored, the memory with which they answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.config.cross_checks import check_experiment, check_passes
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.phases import phases_of, pool_tokens, run_steps
from megatron_mathcpt.config.resolved_study import Study
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.benchmark import choose_sets, examples_for, load_items
from megatron_mathcpt.formats.corpus_folder import tokens_built
from megatron_mathcpt.log import Cell, figure
from megatron_mathcpt.planner.machine import check_recipe, load_hardware, load_machine
from megatron_mathcpt.planner.memory import (
    USABLE,
    answering_gib,
    check_memory,
    peak_checkpoint_bytes,
    peak_memory,
)
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import known_shapes, load_shape
from megatron_mathcpt.planner.step_time import step_time

RUN_HEADINGS: tuple[str, ...] = ("run", "steps", "tokens", "of which (passes)", "layout")
RUN_HEADINGS += ("GiB", "s/step", "disk TB", "GPU-hours")
MODEL_HEADINGS = ("model", "parameters", "GB of weights", "TP", "GiB a GPU", "fits")


@dataclass(frozen=True)
class DryRun:
    """One run: optimizer steps, training tokens, the planner's prediction for its layout, over all phases.

    `pools` maps each pool to the tokens drawn from it, and to how many passes over its training split these
    are. `disk_bytes` is what its checkpoints take at most.
    """

    steps: int
    tokens: int
    pools: Mapping[str, tuple[float, float]]
    layout: str
    memory_gib: float
    step_seconds: float
    gpu_hours: float
    disk_bytes: int


def plan_run(config: ExperimentConfig, gpus: int, hardware: str, expected: Mapping[str, float]) -> DryRun:
    """Plan `config` on `gpus` GPUs of type `hardware`.

    Raises `ConfigError` if the sections contradict each other or the GPUs, if the run does not fit in the
    GPU's memory, or if the tokens of a pool are not known. Needs `model` in the config.
    """
    if config.model is None or config.model.vocab_size is None:
        raise ConfigError(
            f"{config.name}: model: missing, as its starting weights decide it; give it to plan the run"
        )
    # The folder of packed samples of an SFT run is named after its pool.
    pools = [config.data.sft.name] if config.data.sft else config.pools
    available = _tokens_of(pools, config.data.corpora, expected)
    check_passes(config, available)
    if config.train.train_epochs is not None:
        seen = {
            "train_tokens": round(config.train.train_epochs * sum(available.values())),
            "train_epochs": None,
        }
        config = config.model_copy(update={"train": config.train.model_copy(update=seen)})
    check_experiment(config, gpus)
    machine = load_machine(hardware)
    check_recipe(config.precision.fp8_recipe, machine.hardware.capability)
    seconds = memory = 0.0
    for phase in phases_of(config):
        check_memory(phase.config, gpus, memory_gib=machine.hardware.memory_gib)
        planned = PlannedRun(phase.config, gpus)
        seconds += phase.config.train.train_steps * step_time(planned, machine).total
        memory = max(memory, peak_memory(planned).gib)
    steps = run_steps(config)
    return DryRun(
        steps=steps,
        tokens=phase.last_token,
        pools={pool: (tokens, tokens / available[pool]) for pool, tokens in pool_tokens(config).items()},
        layout=PlannedRun(config, gpus).name,
        memory_gib=memory,
        step_seconds=seconds / steps,
        gpu_hours=seconds * gpus / 3600,
        disk_bytes=peak_checkpoint_bytes(config),
    )


def _tokens_of(
    pools: Iterable[str], corpora: Sequence[Path], expected: Mapping[str, float]
) -> dict[str, float]:
    """Training tokens of each pool: from the corpora that are built, else as expected."""
    known = {**expected, **tokens_built(corpora)}
    if missing := [pool for pool in pools if pool not in known]:
        raise ConfigError(
            f"data: the number of tokens of pool '{missing[0]}' is not known; build its corpus, "
            "or set it under `corpus: {BUILD: {tokens: ...}}` of a study file"
        )
    return {pool: known[pool] for pool in pools}


def plan_models(study: Study, hardware: str) -> list[tuple[str | float, ...]]:
    """A row of `MODEL_HEADINGS` for each model to be scored; the last cell is "yes", or what is wrong."""
    limit, rows = USABLE * load_hardware(hardware).memory_gib, list[tuple[str | float, ...]]()
    for name, row in study.models.items():
        asked, shape = study.evaluation.of(row), known_shapes().get(name)
        if row.hf and (row.hf / "config.json").is_file():
            with suppress(ConfigError):  # of another family: `size` is known
                shape = read_hf_shape(row.hf)
        elif row.shape:
            shape = load_shape(row.shape)
        parameters = shape.num_parameters() if shape and shape.vocab_size else 1e9 * (row.size or 0)
        heads, tensor = shape.num_attention_heads if shape else 64, asked.tensor_model_parallel_size
        sizes, batch = (1, 2, 4, 8, 16, 32, 64), (asked.batch_size, asked.max_new_tokens)
        found = {size: answering_gib(parameters, shape, size, *batch) for size in (*sizes, tensor)}
        fitting = (f"TP {size} fits" for size in sizes if found[size] <= limit and heads % size == 0)
        advice = next(fitting, "lower evaluation.batch_size")
        wrong = f"{limit:.1f} are usable" if found[tensor] > limit else ""
        wrong = f"{heads} heads are no multiple of TP" if heads % tensor else wrong
        weights = Cell(parameters, f"{parameters / 1e9:.2f}B"), figure(2 * parameters / 1e9, ".1f")
        size = (*weights, tensor, figure(found[tensor], ".1f"))
        known = "yes" if shape else "yes, without cache" if parameters else "not known; give size or shape"
        rows.append((name, *size, f"no: {wrong}; {advice}" if wrong else known))
    return rows


def check_scored(study: Study, hardware: str, benchmarks: Path | None) -> None:
    """Refuse, before any stage runs, models that are missing or too large, and sets that are not complete."""
    gone = [
        f"{name} (hf download {row.hub or 'ORGANIZATION/NAME'} --local-dir {row.hf})"
        for name, row in study.models.items()
        if row.hf and not (row.hf / "config.json").is_file()
    ]
    if gone:
        what = "download them, or name what is there with --only"
        raise ConfigError(f"models: no Hugging Face folder for {', '.join(gone)}; {what}")
    rows = [row for row in plan_models(study, hardware) if str(row[-1]).startswith("no:")]
    if rows:
        shown = (f"{name} at TP {tensor} ({gib} GiB; {fits})" for name, *_, tensor, gib, fits in rows)
        raise ConfigError(f"models: {', '.join(shown)}: set tensor_model_parallel_size (TP) for {hardware}")
    sets, shots = ",".join(study.evaluation.sets), study.evaluation.shots
    for name, path in choose_sets(str(benchmarks), sets).items() if benchmarks else ():
        examples_for(load_items(path).items, path, shots if isinstance(shots, int) else shots.get(name, 0))


def plan_rows(runs: Mapping[str, DryRun]) -> list[tuple[str | float, ...]]:
    """A row of `RUN_HEADINGS` for each run."""
    rows = list[tuple[str | float, ...]]()
    for name, run in runs.items():
        mixed = "\n".join(
            f"{pool} {n / run.tokens:.0%} {n / 1e9:.2f}B ({passes:.2f})"
            for pool, (n, passes) in run.pools.items()
        )
        tokens = Cell(run.tokens, f"{run.tokens / 1e9:.1f}B"), Cell(run.pools, mixed)
        costs = (run.memory_gib, run.step_seconds, run.disk_bytes / 1e12, run.gpu_hours)
        rows.append((name, run.steps, *tokens, run.layout, *costs))
    return rows
