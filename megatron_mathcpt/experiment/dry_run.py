"""What a run will see, take and cost, said on any machine before anything is held.

Token counts come from the corpus folder if it is built, else from a file of expected tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.stages import Stage
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest
from megatron_mathcpt.planner.machine import check_recipe, load_machine
from megatron_mathcpt.planner.memory import check_memory, peak_memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.step_time import step_time


@dataclass(frozen=True)
class DryRun:
    """One run: optimizer steps, tokens seen, the planner's prediction of its layout.

    `pools` has the tokens drawn from each, and how many passes over it that is.
    """

    steps: int
    tokens: int
    pools: Mapping[str, tuple[float, float]]
    layout: str
    memory_gib: float
    step_seconds: float
    gpu_hours: float


def load_expected_tokens(path: Path) -> dict[str, float]:
    """Tokens of each pool, from a YAML file in billions."""
    billions = load_config(path, RootModel[dict[str, float]]).root
    return {pool: tokens * 1e9 for pool, tokens in billions.items()}


def plan_run(config: ExperimentConfig, gpus: int, hardware: str, expected: Mapping[str, float]) -> DryRun:
    """Plan `config` on `gpus` cards of `hardware`.

    Raises `ConfigError` if the sections contradict each other or the GPUs, if the run does not fit into the
    card's memory, or if nothing tells how many tokens a pool has. Needs `model` in the config.
    """
    config, available = _with_tokens(config, expected)
    check_experiment(config, gpus)
    machine = load_machine(hardware)
    check_memory(config, gpus, memory_gib=machine.hardware.memory_gib)
    check_recipe(config.precision.fp8_recipe, machine.hardware.capability)
    run = PlannedRun(config, gpus)
    seconds = step_time(run, machine).total
    steps = config.train.train_steps
    tokens = steps * config.train.tokens_per_step
    shares = config.data.shares() if config.data.blend else {_sft_pool(config): 1.0}
    return DryRun(
        steps=steps,
        tokens=tokens,
        pools={pool: (share * tokens, share * tokens / available[pool]) for pool, share in shares.items()},
        layout=run.name,
        memory_gib=peak_memory(run).gib,
        step_seconds=seconds,
        gpu_hours=steps * seconds * gpus / 3600,
    )


def plan_stage(stage: Stage, gpus: int, hardware: str, expected: Mapping[str, float]) -> DryRun | None:
    """The same of one stage of a grid, with the overrides that it will run with.

    None if it trains nothing, or if only its starting weights tell the model's shape.
    """
    if stage.kind != "run":
        return None
    path, *overrides = stage.command[3 : stage.command.index("--out")]
    config = load_config(Path(path), ExperimentConfig, overrides)
    return plan_run(config, gpus, hardware, expected) if config.model and config.model.vocab_size else None


def as_cells(run: DryRun) -> tuple[str, ...]:
    """Steps, tokens, memory in GiB and GPU-hours as texts."""
    return f"{run.steps:,}", f"{run.tokens / 1e9:.1f}B", f"{run.memory_gib:.1f}", f"{run.gpu_hours:,.0f}"


def as_table(runs: Mapping[str, DryRun], title: str) -> Any:
    """A rich table of several runs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    def numbers(*names: str) -> list[Column]:
        return [Column(name, justify="right", no_wrap=True) for name in names]

    columns = [Column("run"), *numbers("steps", "tokens"), Column("of which (passes)", no_wrap=True)]
    columns += [Column("layout"), *numbers("GiB", "s/step", "GPU-hours")]
    table = Table(*columns, title=title, box=SIMPLE_HEAD, show_edge=False, padding=0)  # fits 80 columns
    for name, run in runs.items():
        steps, tokens, memory, hours = as_cells(run)
        mixed = "\n".join(f"{pool} {n / 1e9:.2f}B ({passes:.2f})" for pool, (n, passes) in run.pools.items())
        table.add_row(name, steps, tokens, mixed, run.layout, memory, f"{run.step_seconds:.2f}", hours)
    return table


def _with_tokens(
    config: ExperimentConfig, expected: Mapping[str, float]
) -> tuple[ExperimentConfig, dict[str, float]]:
    """The config with epochs as tokens, and the training tokens of its pools."""
    pools = list(config.data.blend) or [_sft_pool(config)]
    counts = {}
    if config.data.corpus is not None and (config.data.corpus / FILE_NAME).is_file():
        counts = load_manifest(config.data.corpus, "corpus").counts["pools"]
    built = {pool: float(counts[pool]["train"]["tokens"]) for pool in pools if pool in counts}
    available = {**expected, **built}
    for pool in pools:
        if pool not in available:
            raise ConfigError(
                f"data: nothing says how many tokens pool '{pool}' has; build {config.data.corpus} "
                "or give the pool a line in the file of expected tokens"
            )
    if config.train.train_epochs is None:
        return config, available
    tokens = round(config.train.train_epochs * sum(available[pool] for pool in pools))
    train = config.train.model_copy(update={"train_tokens": tokens, "train_epochs": None})
    return config.model_copy(update={"train": train}), available


def _sft_pool(config: ExperimentConfig) -> str:
    """The pool of an SFT run: its packed folder is named after it."""
    assert config.data.sft is not None
    return config.data.sft.name
