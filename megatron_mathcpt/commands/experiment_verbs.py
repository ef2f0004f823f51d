"""A run or a grid of runs: what it will cost, started here, or handed to Slurm."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from megatron_mathcpt.commands.main import (
    Hardware,
    Overrides,
    Pairs,
    pairs_of,
    print_table,
    say,
    typer_of,
    verb,
)
from megatron_mathcpt.commands.model_verbs import start_training
from megatron_mathcpt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_mathcpt.config.experiment import ExperimentConfig
    from megatron_mathcpt.experiment.stages import Stage

HEADING = "Experiments"
app = typer_of()
Config = Annotated[Path, Argument(help="YAML file of a run or a grid; or quickstart")]
Out = Annotated[Path, Option(help="folder of the run, or of the grid's results")]
Data = Annotated[Path | None, Option(help="folder of own corpora: <pool>.jsonl or .jsonl.gz")]
Benchmarks = Annotated[Path | None, Option(help="folder of benchmark sets, one sub-folder a set")]
Add = Annotated[list[Path] | None, Option(help="YAML file of one more run; may be given again")]
Only = Annotated[list[str] | None, Option(help="only this run and what it needs; may be given again")]


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a run, or of a grid; all but `config` and `overrides` are a grid's."""

    config: Path
    overrides: Sequence[str]
    data: Path | None
    benchmarks: Path | None
    add: Sequence[Path] | None
    compare: Sequence[str] | None
    only: Sequence[str] | None

    def is_grid(self) -> bool:
        """Whether `config` is a grid; raises `ConfigError` for an option that a run would ignore."""
        from pydantic import RootModel

        from megatron_mathcpt.config.base import load_config

        if "runs" in load_config(self.config, RootModel[dict[str, Any]]).root:
            return True
        for name in ("data", "benchmarks", "add", "compare", "only"):
            if getattr(self, name):
                raise ConfigError(f"--{name}: takes effect in a grid, and {self.config} is one run")
        return False

    def stages(self, out: Path, processes: int) -> "list[Stage]":
        """The stages of the grid, with the runs and comparisons of the command line."""
        from megatron_mathcpt.config.base import load_config
        from megatron_mathcpt.config.grid import GridConfig
        from megatron_mathcpt.experiment.stages import Settings, build_stages

        data, benchmarks = (path.resolve() if path else None for path in (self.data, self.benchmarks))
        settings = Settings(out.resolve(), processes, data, benchmarks, tuple(self.overrides))
        added = {_load_run(path).name: path.resolve() for path in self.add or ()}
        pairs = [(candidate, baseline) for baseline, candidate in pairs_of(self.compare)]
        grid = load_config(self.config, GridConfig).with_runs(added, pairs)
        return build_stages(grid, self.config.parent.resolve(), settings, self.only or ())


def _load_run(path: Path, overrides: Sequence[str] | None = None) -> "ExperimentConfig":
    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.experiment import ExperimentConfig

    return load_config(path, ExperimentConfig, overrides or ())


def _config_file(path: Path) -> Path:
    """`path`, or the file of the quickstart if it is just that word."""
    package = Path(__file__).resolve().parents[1]
    # setup.py copies the quickstart's files into a wheel; a checkout has them where they are edited.
    places = (package / "quickstart", package.parent / "configs" / "tiny")
    found = (place / "quickstart.yaml" for place in places if (place / "quickstart.yaml").is_file())
    return next(found, path) if str(path) == "quickstart" and not path.exists() else path


@verb(app, "show", HEADING)
def show(
    run: Annotated[Path, Argument(help="YAML file of a run, or its folder")],
    overrides: Overrides = None,
) -> None:
    """Print the complete config of a run, every field with its value."""
    from megatron_mathcpt.config.base import dump_yaml

    path = run / "config.yaml" if run.is_dir() else run
    typer.echo(dump_yaml(_load_run(path, overrides)), nl=False)


@verb(app, "dry-run", HEADING)
def dry_run(
    configs: Annotated[list[str], Argument(metavar="CONFIG ... [section.field=value ...]")],
    gpus: Annotated[int | None, Option(min=1, help="GPUs of each run; a grid may go without")] = None,
    hardware: Hardware = "h100",
    expected: Annotated[Path | None, Option(help="tokens of pools not built yet, in billions")] = None,
    out: Annotated[Path | None, Option(help="a grid's folder of results")] = None,
    data: Data = None,
    benchmarks: Benchmarks = None,
    add: Add = None,
    compare: Pairs = None,
    only: Only = None,
) -> None:
    """Print what runs would see and cost, or what of a grid is still to do.

    Of a run: steps, tokens and passes of each pool, memory, GPU-hours. Of a grid: the stages in order, what
    each needs, whether it is done; with --gpus what each costs.
    """
    from rich.console import Console

    from megatron_mathcpt.experiment.dry_run import as_table, load_expected_tokens, plan_run

    overrides = [argument for argument in configs if "=" in argument and not Path(argument).exists()]
    files = [_config_file(Path(argument)) for argument in configs if argument not in overrides]
    if not files:
        raise ConfigError(f"override '{overrides[0]}': give the YAML file of an experiment too")
    asked = Asked(files[0], overrides, data, benchmarks, add, compare, only)
    tokens = load_expected_tokens(expected) if expected else {}
    if asked.is_grid():
        if out is None or len(files) > 1:
            raise ConfigError(f"{files[0]}: is a grid; give it alone, and its folder of results with --out")
        if overrides and not gpus:
            raise ConfigError(f"override '{overrides[0]}': changes what runs cost, so give --gpus too")
        _plan_grid(asked, out, gpus, hardware, tokens)
    elif not gpus:
        raise ConfigError(f"{files[0]}: is a run; give the GPUs it would have with --gpus")
    else:
        loaded = (_load_run(path, overrides) for path in files)
        runs = {config.name: plan_run(config, gpus, hardware, tokens) for config in loaded}
        Console().print(as_table(runs, f"{gpus} {hardware}"))


def _plan_grid(asked: Asked, out: Path, gpus: int | None, hardware: str, tokens: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from megatron_mathcpt.experiment.dry_run import as_cells, plan_stage
    from megatron_mathcpt.experiment.stages import is_done

    costs = ("steps", "tokens", "GiB", "GPU-hours") if gpus else ()
    columns = (Column(heading, justify="right", no_wrap=True) for heading in costs)
    table = Table("stage", "needs", Column("state", no_wrap=True), *columns, title=str(asked.config))
    hours = 0.0
    for stage in asked.stages(out, gpus or 2):
        planned = plan_stage(stage, gpus, hardware, tokens) if gpus else None
        hours += planned.gpu_hours if planned else 0.0
        more = f" and {len(stage.needs) - 4} more" if len(stage.needs) > 5 else ""
        needs = ", ".join(stage.needs[:4] if more else stage.needs) + more
        state = "done" if is_done(stage) else "to do"
        table.add_row(stage.name, needs, state, *(as_cells(planned) if planned else ()))
    Console().print(table)
    if gpus:
        say(f"{hours:,.0f} GPU-hours of training on {hardware}, by the planner")


@verb(app, "run", HEADING)
def run(
    config: Config,
    overrides: Overrides = None,
    *,
    out: Out,
    processes: Annotated[int | None, Option(min=1, help="processes of a training; of a grid's: 2")] = None,
    data: Data = None,
    benchmarks: Benchmarks = None,
    add: Add = None,
    compare: Pairs = None,
    only: Only = None,
) -> None:
    """Train one run here, or complete the stages of a grid that are not done.

    `run quickstart` is the whole road at a size for two cores. Overrides are those of every run.
    """
    from megatron_mathcpt.experiment.local import exit_status, handle_termination, run_stages
    from megatron_mathcpt.report.page import print_report

    asked = Asked(_config_file(config), overrides or (), data, benchmarks, add, compare, only)
    if not asked.is_grid():
        start_training(config, asked.overrides, out, processes)
    handle_termination()
    outcomes = run_stages(asked.stages(out, processes or 2), out.resolve())
    ran = [outcome for outcome in outcomes if outcome.state == "ran"]
    if ran:
        peak = max(ran, key=lambda outcome: outcome.peak_memory_gib)
        minutes = sum(outcome.seconds for outcome in ran) / 60
        memory = f"peak memory {peak.peak_memory_gib:.1f} GiB ({peak.stage})"
        typer.echo(f"{len(ran)} stages in {minutes:.1f} min, {memory}", err=True)
    if not exit_status(outcomes):
        print_report(out / "report", out.resolve().name)
    sys.exit(exit_status(outcomes))


@verb(app, "submit", HEADING)
def submit(
    config: Config,
    overrides: Overrides = None,
    *,
    out: Out,
    cluster: Annotated[str, Option(help="name under configs/clusters, or a path ending in .yaml")],
    site: Annotated[list[str] | None, Option("--set", help="override the cluster file: nodes=4")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print the scripts; submit nothing")] = False,
    allow_dirty: Annotated[bool, Option("--allow-dirty", help="snapshot uncommitted changes too")] = False,
    data: Data = None,
    benchmarks: Benchmarks = None,
    add: Add = None,
    compare: Pairs = None,
    only: Only = None,
) -> None:
    """Hand one run, or the stages of a grid, to Slurm."""
    from megatron_mathcpt.experiment import submit as slurm

    asked = Asked(_config_file(config), overrides or (), data, benchmarks, add, compare, only)
    place, out = slurm.load_cluster(cluster, site or ()), out.resolve()
    if asked.is_grid():
        stages = asked.stages(out, place.world_size)
        if dry_run:
            typer.echo("\n".join(slurm.render(slurm.stage_job(stage, place, out), place) for stage in stages))
            return
        done = slurm.submit_stages(stages, place, out, allow_dirty=allow_dirty)
        rows = [(name, state, str(job_id or "")) for name, (state, job_id) in done.items()]
        print_table(("stage", "state", "job"), rows, f"{config} on {place.name}")
        return
    settings = _load_run(asked.config, overrides)
    job = slurm.run_job(settings, place, out)
    if dry_run:
        typer.echo(slurm.render(job, place), nl=False)
        return
    from megatron_mathcpt.train.inputs import resolve_inputs

    resolve_inputs(settings)  # a missing corpus or checkpoint is told here, not after the queue
    job_id = slurm.submit_run(settings, job, place, allow_dirty=allow_dirty)
    say(f"job {job_id}: {job.folder}")
