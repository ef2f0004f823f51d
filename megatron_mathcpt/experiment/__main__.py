"""Show the stages of a grid, run them here, or hand them to Slurm."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_mathcpt.errors import run_command

if TYPE_CHECKING:
    from megatron_mathcpt.config.grid import GridConfig
    from megatron_mathcpt.experiment.stages import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
GRID = Annotated[Path, typer.Argument(help="YAML file of the grid")]
OUT = Annotated[Path, typer.Option(help="folder of the results")]
DATA = Annotated[Path | None, typer.Option(help="folder of own corpora: <pool>.jsonl or .jsonl.gz")]
BENCHMARKS = Annotated[Path | None, typer.Option(help="folder of benchmark sets, one sub-folder a set")]
PROCESSES = Annotated[int, typer.Option(min=1, help="processes of a training run")]
HARDWARE = Annotated[str, typer.Option(help="name in planner/data/hardware.yaml")]
EXPECTED = Annotated[Path | None, typer.Option(help="tokens of pools not built yet, in billions")]
ADD = Annotated[list[Path] | None, typer.Option(help="YAML file of one more run; may be given again")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="section.field=value ..., of every run")]
ONLY = Annotated[list[str] | None, typer.Option(help="only this run and what it needs; may be given again")]
COMPARE = Annotated[list[str] | None, typer.Option(help="B,A: test B - A too; may be given again")]


@app.command()
def plan(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    grid: GRID,
    out: OUT,
    data: DATA = None,
    benchmarks: BENCHMARKS = None,
    processes: PROCESSES = 2,
    add: ADD = None,
    compare: COMPARE = None,
    only: ONLY = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of each run: adds what it costs")] = None,
    hardware: HARDWARE = "h100",
    expected: EXPECTED = None,
    overrides: OVERRIDES = None,
) -> None:
    """Print the stages in order: what each needs, and whether it is done; with --gpus, what each costs."""
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.errors import ConfigError
    from megatron_mathcpt.experiment.dry_run import as_cells, load_expected_tokens, plan_stage
    from megatron_mathcpt.experiment.stages import build_stages, is_done

    if overrides and not gpus:
        raise ConfigError(f"override '{overrides[0]}': changes what runs cost, so give --gpus too")
    tokens = load_expected_tokens(expected) if expected else {}
    costs = ("steps", "tokens", "GiB", "GPU-hours") if gpus else ()
    table, hours = Table(title=str(grid)), 0.0
    for heading in ("stage", "needs", "state", *costs):
        justify: Literal["left", "right"] = "right" if heading in costs else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in ("stage", "needs"))
    settings = _settings(out, gpus or processes, data, benchmarks)
    for stage in build_stages(_load(grid, add, compare), grid.parent.resolve(), settings, only or ()):
        planned = plan_stage(stage, gpus, hardware, tokens, overrides or ()) if gpus else None
        hours += planned.gpu_hours if planned else 0.0
        state = "done" if is_done(stage) else "to do"
        table.add_row(stage.name, _shortened(stage.needs), state, *(as_cells(planned) if planned else ()))
    Console().print(table)
    if gpus:
        Console().print(f"{hours:,.0f} GPU-hours of training on {hardware}, by the planner")


@app.command()
def run(  # noqa: PLR0913, PLR0917
    grid: GRID,
    out: OUT,
    data: DATA = None,
    benchmarks: BENCHMARKS = None,
    processes: PROCESSES = 2,
    add: ADD = None,
    compare: COMPARE = None,
    only: ONLY = None,
) -> None:
    """Run the stages that are not done, on this machine."""
    from rich.console import Console

    from megatron_mathcpt.experiment.local import exit_status, handle_termination, run_stages
    from megatron_mathcpt.experiment.stages import build_stages
    from megatron_mathcpt.report.page import load_report, print_report

    handle_termination()
    settings = _settings(out, processes, data, benchmarks)
    stages = build_stages(_load(grid, add, compare), grid.parent.resolve(), settings, only or ())
    outcomes = run_stages(stages, out.resolve())
    ran = [outcome for outcome in outcomes if outcome.state == "ran"]
    if ran:
        peak = max(ran, key=lambda outcome: outcome.peak_memory_gib)
        seconds = sum(outcome.seconds for outcome in ran)
        Console(stderr=True).print(
            f"{len(ran)} stages in {seconds / 60:.1f} min, "
            f"peak memory {peak.peak_memory_gib:.1f} GiB ({peak.stage})"
        )
    if not exit_status(outcomes):
        print_report(load_report(out / "report"), out.resolve().name)
    sys.exit(exit_status(outcomes))


@app.command()
def submit(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    grid: GRID,
    out: OUT,
    cluster: Annotated[str, typer.Option(help="name under configs/clusters, or a path ending in .yaml")],
    data: DATA = None,
    benchmarks: BENCHMARKS = None,
    site: Annotated[
        list[str] | None, typer.Option("--set", help="override the cluster file: nodes=4")
    ] = None,
    allow_dirty: Annotated[bool, typer.Option(help="snapshot uncommitted changes too")] = False,
    add: ADD = None,
    compare: COMPARE = None,
    only: ONLY = None,
) -> None:
    """Hand the stages that are not done to Slurm, each a job after those it needs."""
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.experiment.stages import build_stages
    from megatron_mathcpt.experiment.submit import load_cluster, submit_stages

    place = load_cluster(cluster, site or ())
    settings = _settings(out, place.world_size, data, benchmarks)
    stages = build_stages(_load(grid, add, compare), grid.parent.resolve(), settings, only or ())
    table = Table("stage", "state", "job", title=f"{grid} on {place.name}")
    for submission in submit_stages(stages, place, out.resolve(), allow_dirty=allow_dirty):
        table.add_row(submission.stage, submission.state, str(submission.job_id or ""))
    Console().print(table)


@app.command()
def dry_run(
    configs: Annotated[
        list[str], typer.Argument(help="YAML files of experiments, then section.field=value ...")
    ],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each run")],
    hardware: HARDWARE = "h100",
    expected: EXPECTED = None,
) -> None:
    """Print what runs would see and cost: steps, tokens and passes of each pool, memory, GPU-hours."""
    from rich.console import Console

    from megatron_mathcpt.config import load_config
    from megatron_mathcpt.config.experiment import ExperimentConfig
    from megatron_mathcpt.errors import ConfigError
    from megatron_mathcpt.experiment.dry_run import as_table, load_expected_tokens, plan_run

    tokens = load_expected_tokens(expected) if expected else {}
    overrides = [argument for argument in configs if "=" in argument and not Path(argument).exists()]
    files = [Path(argument) for argument in configs if argument not in overrides]
    if not files:
        raise ConfigError(f"override '{overrides[0]}': give the YAML file of an experiment too")
    loaded = [load_config(path, ExperimentConfig, overrides) for path in files]
    runs = {config.name: plan_run(config, gpus, hardware, tokens) for config in loaded}
    Console().print(as_table(runs, f"{gpus} {hardware}"))


def _shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    return ", ".join(names[:4] if more else names) + more


def _load(path: Path, add: Sequence[Path] | None, compare: Sequence[str] | None) -> "GridConfig":
    """The grid of `path` with the runs and comparisons of the command line."""
    from megatron_mathcpt.config import load_config
    from megatron_mathcpt.config.experiment import ExperimentConfig
    from megatron_mathcpt.config.grid import GridConfig

    added = {load_config(file, ExperimentConfig).name: file.resolve() for file in add or ()}
    return load_config(path, GridConfig).with_runs(added, [pair.split(",") for pair in compare or ()])


def _settings(out: Path, processes: int, data: Path | None, benchmarks: Path | None) -> "Settings":
    from megatron_mathcpt.experiment.stages import Settings

    return Settings(out.resolve(), processes, *(f.resolve() if f else None for f in (data, benchmarks)))


if __name__ == "__main__":
    run_command(app)
