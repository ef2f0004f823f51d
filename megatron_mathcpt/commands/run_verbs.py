"""Layouts, conversion, training; what a run or a grid of runs costs, started here or handed to Slurm."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from typer import Argument, Option, echo

from megatron_mathcpt.commands.main import Hardware, Overrides, Pairs, group, pairs_of, print_table, verb
from megatron_mathcpt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_mathcpt.config.experiment import ExperimentConfig
    from megatron_mathcpt.experiment.stages import Stage

Config = Annotated[Path, Argument(help="YAML file of a run or a grid; or quickstart")]
Out = Annotated[Path, Option(help="folder of the run, or of the grid's results")]
Verify = Annotated[bool, Option(help="compare both models' logits")]
_PIPED_WIDTH = 140  # rich takes 80 columns where it sees no terminal


@verb("plan")
def plan(
    model: Annotated[str, Argument(help="known shape (llama3-8b) or path of a HF config.json")],
    overrides: Overrides = None,
    *,
    gpus: Annotated[int, Option(min=1, help="number of GPUs")],
    global_batch_size: Annotated[int, Option(min=1, help="sequences per step")] = 1024,
    seq_length: Annotated[int, Option(min=1, help="tokens per sequence")] = 4096,
    hardware: Hardware = "h100",
    memory_gib: Annotated[float | None, Option(help="limit; default 90 % of the card")] = None,
    train_tokens: Annotated[float, Option(help="token budget of the run")] = 1e10,
    top: Annotated[int, Option(min=1, help="layouts to show")] = 10,
) -> None:
    """Rank the layouts of a model on some GPUs: memory, step time, GPU-hours.

    Overrides are those of a training config: precision, fusions, optimizer. It says why other layouts lose.
    """
    from rich.console import Console

    from megatron_mathcpt.planner import machine, search, shapes

    size = {"seq_length": seq_length, "global_batch_size": global_batch_size}
    config = search.given_config(shapes.load_shape(model), overrides or (), **size)
    result = search.search(config, gpus, machine.load_machine(hardware), limit_gib=memory_gib)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    for part in search.describe(result, train_tokens=train_tokens, top=top):
        console.print(part, soft_wrap=isinstance(part, str))


conversion = group("convert", "Convert between checkpoints and Hugging Face Llama folders.")


@verb("to-hf", conversion)
def to_hf(
    run: Annotated[Path, Argument(help="run folder, or one checkpoint of it")],
    out: Annotated[Path, Option(help="Hugging Face folder to write")],
    tokenizer: Annotated[Path | None, Option(help="tokenizer folder; default: the corpus's")] = None,
    verify: Verify = True,
) -> None:
    """Write a Hugging Face folder from a run's chosen checkpoint."""
    from megatron_mathcpt.checkpoint.convert import export_to_hf

    _show(out, export_to_hf(run, out, tokenizer, verify=verify))


@verb("from-hf", conversion)
def from_hf(
    folder: Annotated[Path, Argument(help="Hugging Face folder of a Llama")],
    out: Annotated[Path, Option(help="checkpoint folder to write, for `init.checkpoint`")],
    verify: Verify = True,
) -> None:
    """Write a checkpoint, for any layout, from Hugging Face weights."""
    from megatron_mathcpt.checkpoint.convert import import_from_hf

    _show(out, import_from_hf(folder, out, verify=verify))


def _show(out: Path, done: Any) -> None:
    """Tell what became of a conversion, a `checkpoint.convert.Converted`."""
    difference = done.max_abs_logit_difference
    proof = "logits not compared" if difference is None else f"largest logit difference {difference:.2e}"
    echo(f"{out}: {'already there' if done.was_there else 'written'}; {proof}")


@verb("train")
def train(
    config: Annotated[Path, Argument(help="YAML file of the experiment")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="run folder; started again, the run goes on there")],
    processes: Annotated[int | None, Option(help="local workers; default: the layout's size")] = None,
    check: Annotated[bool, Option("--check", help="check config and data, then stop")] = False,
) -> None:
    """Train a Llama with Megatron-Core, from scratch or from given weights."""
    start_training(config, overrides or (), out, processes, *(("--check",) if check else ()))


def start_training(
    config: Path, overrides: Sequence[str], out: Path, processes: int | None, *more: str
) -> NoReturn:
    """Become `python -m megatron_mathcpt.train`, so that signals and exit status are the training's own."""
    words = [sys.executable, "-m", "megatron_mathcpt.train", str(config), *overrides, "--out", str(out)]
    os.execv(sys.executable, [*words, *(("--processes", str(processes)) if processes else ()), *more])


@dataclass(frozen=True)
class GridOptions:
    """What the command line asks of a grid, and of a grid alone."""

    data: Annotated[Path | None, Option(help="folder of own corpora: <pool>.jsonl or .jsonl.gz")] = None
    benchmarks: Annotated[Path | None, Option(help="folder of benchmark sets, one sub-folder a set")] = None
    add: Annotated[list[Path] | None, Option(help="YAML file of one more run; may be given again")] = None
    compare: Pairs = None
    only: Annotated[list[str] | None, Option(help="only this run and its needs; may be given again")] = None

    def stages(
        self, config: Path, overrides: Sequence[str], out: Path | None, processes: int
    ) -> "list[Stage] | None":
        """The stages of the grid `config`; None if it is one run, which refuses the options of a grid."""
        from pydantic import RootModel

        from megatron_mathcpt.config.base import load_config
        from megatron_mathcpt.config.grid import GridConfig
        from megatron_mathcpt.experiment.stages import Settings, build_stages

        if "runs" not in load_config(config, RootModel[dict[str, Any]]).root:
            if given := [name for name, value in vars(self).items() if value]:
                raise ConfigError(f"--{given[0]}: takes effect in a grid, and {config} is one run")
            return None
        if out is None:
            raise ConfigError(f"{config}: is a grid; give its folder of results with --out")
        data, benchmarks = (path.resolve() if path else None for path in (self.data, self.benchmarks))
        settings = Settings(out.resolve(), processes, data, benchmarks, tuple(overrides))
        added = {_load_run(path).name: path.resolve() for path in self.add or ()}
        grid = load_config(config, GridConfig).with_runs(added, pairs_of(self.compare))
        return build_stages(grid, config.parent.resolve(), settings, self.only or ())


def _load_run(path: Path, overrides: Sequence[str] = ()) -> "ExperimentConfig":
    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.experiment import ExperimentConfig

    return load_config(path, ExperimentConfig, overrides)


def _config_file(path: Path) -> Path:
    """`path`, or the file of the quickstart if it is just that word."""
    if str(path) != "quickstart" or path.exists():
        return path
    # setup.py copies the quickstart's files into a wheel; a checkout has them where they are edited.
    package = Path(__file__).resolve().parents[1]
    installed = package / "quickstart" / "quickstart.yaml"
    return installed if installed.is_file() else package.parent / "configs" / "tiny" / "quickstart.yaml"


@verb("show")
def show(
    run: Annotated[Path, Argument(help="YAML file of a run, or its folder")],
    overrides: Overrides = None,
) -> None:
    """Print the complete config of a run, every field with its value."""
    from megatron_mathcpt.config.base import dump_yaml

    path = run / "config.yaml" if run.is_dir() else run
    echo(dump_yaml(_load_run(path, overrides or ())), nl=False)


@verb("dry-run")
def dry_run(
    configs: Annotated[list[str], Argument(metavar="CONFIG ... [section.field=value ...]")],
    gpus: Annotated[int | None, Option(min=1, help="GPUs of each run; a grid may go without")] = None,
    hardware: Hardware = "h100",
    expected: Annotated[Path | None, Option(help="tokens of pools not built yet, in billions")] = None,
    out: Annotated[Path | None, Option(help="a grid's folder of results")] = None,
    *,
    asked: GridOptions,
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
    tokens = load_expected_tokens(expected) if expected else {}
    stages = asked.stages(files[0], overrides, out, gpus or 2)
    if stages is not None:
        if len(files) > 1:
            raise ConfigError(f"{files[0]}: is a grid; give it alone")
        if overrides and not gpus:
            raise ConfigError(f"override '{overrides[0]}': changes what runs cost, so give --gpus too")
        _plan_grid(stages, str(files[0]), gpus, hardware, tokens)
    elif not gpus:
        raise ConfigError(f"{files[0]}: is a run; give the GPUs it would have with --gpus")
    else:
        loaded = (_load_run(path, overrides) for path in files)
        runs = {config.name: plan_run(config, gpus, hardware, tokens) for config in loaded}
        Console().print(as_table(runs, f"{gpus} {hardware}"))


def _plan_grid(
    stages: "Sequence[Stage]", title: str, gpus: int | None, hardware: str, tokens: Mapping[str, float]
) -> None:
    from megatron_mathcpt.experiment.dry_run import plan_stage

    rows, hours = [], 0.0
    for stage in stages:
        planned = plan_stage(stage, gpus, hardware, tokens) if gpus else None
        hours += planned.gpu_hours if planned else 0.0
        more = f" and {len(stage.needs) - 4} more" if len(stage.needs) > 5 else ""
        needs = ", ".join(stage.needs[:4] if more else stage.needs) + more
        cost = planned.cells() if planned else ()
        rows.append((stage.name, needs, "done" if stage.is_done() else "to do", *cost))
    costs = ("steps", "tokens", "GiB", "GPU-hours") if gpus else ()
    print_table(("stage", "needs", "state", *costs), rows, title)
    if gpus:
        echo(f"{hours:,.0f} GPU-hours of training on {hardware}, by the planner")


@verb("run")
def run(
    config: Config,
    overrides: Overrides = None,
    *,
    out: Out,
    processes: Annotated[int | None, Option(min=1, help="processes of a training; of a grid's: 2")] = None,
    asked: GridOptions,
) -> None:
    """Train one run here, or complete the stages of a grid that are not done.

    `run quickstart` is the whole road at a size for two cores. Overrides are those of every run.
    """
    from megatron_mathcpt.experiment.local import run_stages
    from megatron_mathcpt.report.page import print_report

    stages = asked.stages(_config_file(config), overrides or (), out, processes or 2)
    if stages is None:
        start_training(config, overrides or (), out, processes)
    # As an exception, SIGTERM has the running stage ended before this process is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outcomes = run_stages(stages, out.resolve())
    ran = [outcome for outcome in outcomes if outcome.state == "ran"]
    if ran:
        peak = max(ran, key=lambda outcome: outcome.peak_memory_gib)
        minutes = sum(outcome.seconds for outcome in ran) / 60
        memory = f"peak memory {peak.peak_memory_gib:.1f} GiB ({peak.stage})"
        echo(f"{len(ran)} stages in {minutes:.1f} min, {memory}", err=True)
    status = next((outcome.status for outcome in outcomes if outcome.status), 0)
    if not status:
        print_report(out / "report", out.resolve().name)
    sys.exit(status)


@verb("submit")
def submit(
    config: Config,
    overrides: Overrides = None,
    *,
    out: Out,
    cluster: Annotated[str, Option(help="name under configs/clusters, or a path ending in .yaml")],
    site: Annotated[list[str] | None, Option("--set", help="override the cluster file: nodes=4")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print the scripts; submit nothing")] = False,
    allow_dirty: Annotated[bool, Option("--allow-dirty", help="snapshot uncommitted changes too")] = False,
    asked: GridOptions,
) -> None:
    """Hand one run, or the stages of a grid, to Slurm."""
    from megatron_mathcpt.experiment import submit as slurm

    place, out = slurm.load_cluster(cluster, site or ()), out.resolve()
    stages = asked.stages(_config_file(config), overrides or (), out, place.world_size)
    if stages is not None:
        if dry_run:
            echo("\n".join(slurm.render(slurm.stage_job(stage, place, out), place) for stage in stages))
            return
        done = slurm.submit_stages(stages, place, out, allow_dirty=allow_dirty)
        rows = [(name, state, str(job_id or "")) for name, (state, job_id) in done.items()]
        print_table(("stage", "state", "job"), rows, f"{config} on {place.name}")
        return
    settings = _load_run(config, overrides or ())
    job = slurm.run_job(settings, place, out)
    if dry_run:
        echo(slurm.render(job, place), nl=False)
        return
    from megatron_mathcpt.train.inputs import resolve_inputs

    resolve_inputs(settings)  # a missing corpus or checkpoint is told here, not after the queue
    job_id = slurm.submit_run(settings, job, place, allow_dirty=allow_dirty)
    echo(f"job {job_id}: {job.folder}")
