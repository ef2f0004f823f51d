"""What a run will see, take and cost, said on any machine before anything is held.

Token counts come from the corpus folder if it is built, else from a file of expected tokens.
"""

from collections.abc import Iterable, Mapping
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

    def cells(self) -> tuple[str, ...]:
        """Steps, tokens, memory in GiB and GPU-hours as texts."""
        return (
            f"{self.steps:,}",
            f"{self.tokens / 1e9:.1f}B",
            f"{self.memory_gib:.1f}",
            f"{self.gpu_hours:,.0f}",
        )


def load_expected_tokens(path: Path) -> dict[str, float]:
    """Tokens of each pool, from a YAML file in billions."""
    billions = load_config(path, RootModel[dict[str, float]]).root
    return {pool: tokens * 1e9 for pool, tokens in billions.items()}


def plan_run(config: ExperimentConfig, gpus: int, hardware: str, expected: Mapping[str, float]) -> DryRun:
    """Plan `config` on `gpus` cards of `hardware`.

    Raises `ConfigError` if the sections contradict each other or the GPUs, if the run does not fit into the
    card's memory, or if nothing tells how many tokens a pool has. Needs `model` in the config.
    """
    # Of an SFT run the packed folder is named after its pool.
    shares = {config.data.sft.name: 1.0} if config.data.sft else config.data.shares()
    available = _tokens_of(shares, config.data.corpus, expected)
    if config.train.train_epochs is not None:
        seen = {
            "train_tokens": round(config.train.train_epochs * sum(available.values())),
            "train_epochs": None,
        }
        config = config.model_copy(update={"train": config.train.model_copy(update=seen)})
    check_experiment(config, gpus)
    machine = load_machine(hardware)
    check_memory(config, gpus, memory_gib=machine.hardware.memory_gib)
    check_recipe(config.precision.fp8_recipe, machine.hardware.capability)
    run = PlannedRun(config, gpus)
    seconds = step_time(run, machine).total
    steps = config.train.train_steps
    tokens = steps * config.train.tokens_per_step
    return DryRun(
        steps=steps,
        tokens=tokens,
        pools={pool: (share * tokens, share * tokens / available[pool]) for pool, share in shares.items()},
        layout=run.name,
        memory_gib=peak_memory(run).gib,
        step_seconds=seconds,
        gpu_hours=steps * seconds * gpus / 3600,
    )


def _tokens_of(pools: Iterable[str], corpus: Path | None, expected: Mapping[str, float]) -> dict[str, float]:
    """Training tokens of each pool: of the corpus if it is built, else as expected."""
    built = {}
    if corpus is not None and (corpus / FILE_NAME).is_file():
        built = load_manifest(corpus, "corpus").counts["pools"]
    found = {}
    for pool in pools:
        tokens = built[pool]["train"]["tokens"] if pool in built else expected.get(pool)
        if tokens is None:
            raise ConfigError(
                f"data: nothing says how many tokens pool '{pool}' has; build {corpus} "
                "or give the pool a line in the file of expected tokens"
            )
        found[pool] = float(tokens)
    return found


def plan_stage(stage: Stage, gpus: int, hardware: str, expected: Mapping[str, float]) -> DryRun | None:
    """The same of one stage of a grid, with the overrides that it will run with.

    None if it trains nothing, or if only its starting weights tell the model's shape.
    """
    if stage.kind != "run":
        return None
    path, *overrides = stage.command[3 : stage.command.index("--out")]
    config = load_config(Path(path), ExperimentConfig, overrides)
    return plan_run(config, gpus, hardware, expected) if config.model and config.model.vocab_size else None


def as_table(runs: Mapping[str, DryRun], title: str) -> Any:
    """A rich table of several runs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=0)  # fits 80 columns
    for name in ("run", "steps", "tokens", "of which (passes)", "layout", "GiB", "s/step", "GPU-hours"):
        left, wrapped = name in ("run", "of which (passes)", "layout"), name in ("run", "layout")
        table.add_column(name, justify="left" if left else "right", no_wrap=not wrapped)
    for name, run in runs.items():
        steps, tokens, memory, hours = run.cells()
        mixed = "\n".join(f"{pool} {n / 1e9:.2f}B ({passes:.2f})" for pool, (n, passes) in run.pools.items())
        table.add_row(name, steps, tokens, mixed, run.layout, memory, f"{run.step_seconds:.2f}", hours)
    return table
