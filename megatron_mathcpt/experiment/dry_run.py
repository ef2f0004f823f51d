"""What a run will read, need and cost, predicted on any machine and before a GPU is allocated.

Token counts come from the corpus folder if it is built, else from `tokens` of the study's builds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest
from megatron_mathcpt.planner.machine import check_recipe, load_machine
from megatron_mathcpt.planner.memory import check_memory, peak_memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.step_time import step_time

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class DryRun:
    """One run: optimizer steps, training tokens, the planner's prediction for its layout.

    `pools` maps each pool to the tokens drawn from it, and to how many passes over it that is.
    """

    steps: int
    tokens: int
    pools: Mapping[str, tuple[float, float]]
    layout: str
    memory_gib: float
    step_seconds: float
    gpu_hours: float


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
    """Training tokens of each pool: from the corpus if it is built, else as expected."""
    built = {}
    if corpus is not None and (corpus / FILE_NAME).is_file():
        built = load_manifest(corpus, "corpus").counts["pools"]
    found = {}
    for pool in pools:
        tokens = built[pool]["train"]["tokens"] if pool in built else expected.get(pool)
        if tokens is None:
            raise ConfigError(
                f"data: the number of tokens of pool '{pool}' is not known; build {corpus}, "
                "or set it under `corpus: {BUILD: {tokens: ...}}` of a study file"
            )
        found[pool] = float(tokens)
    return found


def as_table(runs: Mapping[str, DryRun], title: str) -> "Table":
    """A rich table of several runs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=0)  # fits 80 columns
    for name in ("run", "steps", "tokens", "of which (passes)", "layout", "GiB", "s/step", "GPU-hours"):
        left, wrapped = name in ("run", "of which (passes)", "layout"), name in ("run", "layout")
        table.add_column(name, justify="left" if left else "right", no_wrap=not wrapped, overflow="fold")
    for name, run in runs.items():
        mixed = "\n".join(f"{pool} {n / 1e9:.2f}B ({passes:.2f})" for pool, (n, passes) in run.pools.items())
        size = (f"{run.steps:,}", f"{run.tokens / 1e9:.1f}B", mixed, run.layout)
        table.add_row(
            name, *size, f"{run.memory_gib:.1f}", f"{run.step_seconds:.2f}", f"{run.gpu_hours:,.0f}"
        )
    return table
