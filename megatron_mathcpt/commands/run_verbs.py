"""Layouts, conversion, training; a run or a study shown, planned, run locally or submitted to Slurm."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, NoReturn

from typer import Argument, Option, echo

from megatron_mathcpt.commands.main import Hardware, Overrides, Pairs, group, print_json, print_table, verb
from megatron_mathcpt.commands.score_verbs import print_report
from megatron_mathcpt.errors import ConfigError, first_of
from megatron_mathcpt.log import Cell
from megatron_mathcpt.own_python import own_command, own_environment

if TYPE_CHECKING:
    from megatron_mathcpt.checkpoint.convert import Converted
    from megatron_mathcpt.config.experiment import ExperimentConfig
    from megatron_mathcpt.config.resolved_study import Resolved, Study
    from megatron_mathcpt.experiment.stages import Stage

Config = Annotated[str, Argument(metavar="CONFIG", help="YAML of a run or study, STUDY.yaml:RUN, quickstart")]
Out = Annotated[Path | None, Option(help="folder of the run, or of results; default: the study's `out`")]
Scale = Annotated[str | None, Option(help="a scale defined in the study file, such as tiny")]
Verify = Annotated[bool, Option(help="compare the logits of both models")]


@verb("plan", example="mathcpt plan llama3-8b --gpus 64 --hardware h100")
def plan(
    model: Annotated[str, Argument(help="known shape (llama3-8b) or path of an HF config.json")],
    overrides: Overrides = None,
    *,
    gpus: Annotated[int, Option(min=1, help="number of GPUs")],
    global_batch_size: Annotated[int, Option(min=1, help="sequences per step")] = 1024,
    seq_length: Annotated[
        int | None, Option(min=1, help="tokens per sequence; default: 4096, or the model's limit")
    ] = None,
    hardware: Hardware = "h100",
    memory_gib: Annotated[
        float | None, Option(help="GPU memory limit in GiB; default: 90 % of the card")
    ] = None,
    train_tokens: Annotated[float, Option(help="token budget of the run")] = 1e10,
    top: Annotated[int, Option(min=1, help="number of layouts to show")] = 10,
) -> None:
    """Rank the parallel layouts of a model on some GPUs: memory, step time, GPU-hours.

    Overrides are those of a training config: precision, fusions, optimizer. Rejected layouts are counted.
    """
    from megatron_mathcpt.planner import machine, search, shapes

    shape = shapes.load_shape(model)
    length = seq_length or min(4096, shape.max_position_embeddings)
    batch = {"seq_length": length, "global_batch_size": global_batch_size}
    config = search.given_config(shape, overrides or (), **batch)
    result = search.search(config, gpus, machine.load_machine(hardware), limit_gib=memory_gib)
    for part in search.describe(result, train_tokens=train_tokens, top=top):
        if isinstance(part, str):
            echo(part)
        else:
            title, headings, rows = part
            print_table(headings, rows, title)


@verb("average", example="mathcpt average runs/mine --last 3 --out runs/mean")
def average(
    runs: Annotated[list[Path], Argument(metavar="RUN ...", help="run folders, or single checkpoints")],
    out: Annotated[Path, Option(help="run folder to write")],
    last: Annotated[int | None, Option(min=2, help="of one run: its newest checkpoints, this many")] = None,
) -> None:
    """Write the mean of the weights of runs' chosen checkpoints, or of one run's last, as a run folder."""
    from megatron_mathcpt.checkpoint.average import average

    paths = average(runs, out, last)
    echo(f"{out}: the mean of {len(paths)} checkpoints: {', '.join(map(str, paths))}")


conversion = group("convert", "Convert checkpoints from and to Hugging Face's and Megatron-LM's.")


@verb("to-hf", conversion, example="mathcpt convert to-hf runs/mine --out models/mine --scores scores/mine")
def to_hf(
    run: Annotated[Path, Argument(help="run folder, or one checkpoint of it")],
    out: Annotated[Path, Option(help="Hugging Face folder to write")],
    tokenizer: Annotated[Path | None, Option(help="tokenizer folder; default: the corpus's")] = None,
    scores: Annotated[
        list[Path] | None, Option(help="evaluation folder, for the model card; may be repeated")
    ] = None,
    push: Annotated[str | None, Option(help="upload to this OWNER/NAME of the hub; private if new")] = None,
    verify: Verify = True,
) -> None:
    """Write a Hugging Face folder from a run's chosen checkpoint, with a model card (README.md)."""
    from megatron_mathcpt.checkpoint.convert import export_to_hf, verify_exported
    from megatron_mathcpt.checkpoint.model_card import CARD
    from megatron_mathcpt.formats import hub
    from megatron_mathcpt.formats.manifest import load_manifest

    if push is not None:
        hub.check_login(push)
    _show(out, export_to_hf(run, out, tokenizer, scores=scores or (), verify=verify))
    if push is not None:
        verify_exported(out, full=True)
        # Not the manifest, which has paths of this machine.
        echo(f"pushed to {hub.upload(out, [*load_manifest(out, 'hf').outputs, CARD], push)}")


@verb("from-hf", conversion, example="mathcpt convert from-hf models/base --out checkpoints/base")
def from_hf(
    folder: Annotated[Path, Argument(help="Hugging Face folder, or OWNER/NAME[@REVISION] on its hub")],
    out: Annotated[Path, Option(help="checkpoint folder to write, for `init.checkpoint`")],
    tokenizer: Annotated[Path | None, Option(help="tokenizer with added tokens, which get rows")] = None,
    verify: Verify = True,
) -> None:
    """Write a checkpoint, for any layout, from Hugging Face weights."""
    from megatron_mathcpt.checkpoint.convert import import_from_hf

    _show(out, import_from_hf(folder, out, tokenizer, verify=verify))


@verb("from-megatron", conversion, example="mathcpt convert from-megatron megatron --out checkpoints/back")
def from_megatron(
    folder: Annotated[Path, Argument(help="iter_* folder (torch_dist), its parent, or NeMo's")],
    out: Annotated[Path, Option(help="checkpoint folder to write, for `init.checkpoint`")],
    like: Annotated[
        Path | None, Option(help="Hugging Face folder or id of the same shape; for NeMo's")
    ] = None,
    tokenizer: Annotated[Path | None, Option(help="tokenizer folder; default: that of --like")] = None,
) -> None:
    """Write a checkpoint from the weights of a dense model of Megatron-LM or NeMo. Runs no pickles."""
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.megatron_checkpoints import import_from_megatron

    _show(out, import_from_megatron(folder, out, like, tokenizer))


@verb("to-megatron", conversion, example="mathcpt convert to-megatron runs/mine --out megatron/mine")
def to_megatron(
    run: Annotated[Path, Argument(help="run folder, or one checkpoint of it")],
    out: Annotated[Path, Option(help="folder to write, for Megatron-LM's --load with --finetune")],
) -> None:
    """Write the weights of a run's chosen checkpoint for Megatron-LM; prints its options for the model."""
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.megatron_checkpoints import export_to_megatron

    done, flags = export_to_megatron(run, out)
    _show(out, done)
    echo(f"pretrain_gpt.py --load {out} --finetune {flags}")


def _show(out: Path, done: "Converted") -> None:
    """Print the outcome of a conversion."""
    difference = done.max_abs_logit_difference
    proof = "logits not compared" if difference is None else f"largest logit difference {difference:.2e}"
    echo(f"{out}: {'already there' if done.was_there else 'written'}; {proof}")


@verb("train", example="mathcpt train run.yaml train.lr=1e-5 --out runs/mine")
def train(
    config: Annotated[str, Argument(metavar="CONFIG", help="YAML file of a run, or STUDY.yaml:RUN")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="run folder; if started again, the run resumes there")],
    processes: Annotated[int | None, Option(min=1, help="local processes; default: the layout's")] = None,
    scale: Scale = None,
    check: Annotated[bool, Option("--check", help="check config and data, then stop")] = False,
) -> None:
    """Train a model with Megatron-Core, from scratch or from existing weights."""
    start_training(config, overrides or (), out, processes, scale, *(("--check",) if check else ()))


def start_training(
    config: str, overrides: Sequence[str], out: Path, processes: int | None, scale: str | None, *more: str
) -> NoReturn:
    """Replace this process by the training, so that signals and exit status are the training's own."""
    given = {"--processes": processes, "--scale": scale}
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    words = ["-m", "megatron_mathcpt.train", config, *overrides, "--out", str(out), *options, *more]
    os.execve(sys.executable, own_command(words), own_environment())


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study, most of which do not apply to a single run."""

    data: Annotated[Path | None, Option(help="folder with your own corpora: <pool>.jsonl[.gz]")] = None
    benchmarks: Annotated[Path | None, Option(help="folder of benchmark sets, a sub-folder for each")] = None
    scale: Scale = None
    add: Annotated[list[Path] | None, Option(help="YAML file of one more run; may be repeated")] = None
    compare: Pairs = None
    only: Annotated[list[str] | None, Option(help="only this run and its needs; may be repeated")] = None

    def study(self, config: str, overrides: Sequence[str], out: Path | None) -> "Study | None":
        """The study `config`; None if it is one run, to which only `--scale` applies."""
        from megatron_mathcpt.config.resolved_study import Asked, is_study, load_study

        config = _address(config)
        if not is_study(config):
            if given := [name for name, value in vars(self).items() if value and name != "scale"]:
                raise ConfigError(f"--{given[0]}: takes effect in a study, and {config} is one run")
            return None
        asked = Asked(self.scale, out, self.add or (), self.compare or (), self.only or ())
        return load_study(Path(config), asked, overrides)

    def stages(self, study: "Study", processes: int | None, *, local: bool = True) -> "list[Stage]":
        """The stages of `study` that were asked for, to run here or on a cluster."""
        from megatron_mathcpt.experiment.stages import build_stages

        data, benchmarks = (path.resolve() if path else None for path in (self.data, self.benchmarks))
        return build_stages(study, processes, data, benchmarks, self.only or (), local=local)


def _address(config: str) -> str:
    """The address of a run or a study; for the word `quickstart`, its file."""
    if config != "quickstart" or Path(config).exists():
        return config
    # setup.py copies the quickstart's files into a wheel; in a checkout they are in configs/.
    package = Path(__file__).resolve().parents[1]
    installed = package / "quickstart" / "quickstart.yaml"
    return str(installed if installed.is_file() else package.parent / "configs" / "tiny" / "quickstart.yaml")


@verb("show", example="mathcpt show run.yaml")
def show(
    config: Annotated[str, Argument(metavar="CONFIG", help="YAML file of a run, or STUDY.yaml:RUN")],
    overrides: Overrides = None,
    *,
    scale: Scale = None,
) -> None:
    """Print the complete config of a run, with the fields that a study sets marked."""
    from megatron_mathcpt.config.resolved_study import load_run

    echo(load_run(_address(config), overrides or (), scale).as_yaml(), nl=False)


@verb("dry-run", example="mathcpt dry-run run.yaml --gpus 8 --hardware h100")
def dry_run(
    configs: Annotated[list[str], Argument(metavar="CONFIG ... [section.field=value ...]")],
    gpus: Annotated[int | None, Option(min=1, help="GPUs of each run; optional for a study")] = None,
    hardware: Hardware = "h100",
    out: Out = None,
    *,
    asked: StudyOptions,
) -> None:
    """Print what runs would read and cost: steps, tokens, passes over each pool, memory, disk, GPU-hours.

    For a study also the stages in order, what each needs, and whether it is done; costs only with --gpus. Of
    models that are only scored: parameters, and memory with the key-value cache of a batch.
    """
    from megatron_mathcpt.config.resolved_study import Asked, load_run, load_study
    from megatron_mathcpt.experiment import dry_run as plans

    overrides = [argument for argument in configs if "=" in argument and not Path(argument).exists()]
    files = [argument for argument in configs if argument not in overrides]
    if not files:
        raise ConfigError(f"override '{overrides[0]}': give the YAML file of an experiment too")
    study = asked.study(files[0], overrides, out)
    if study is not None and len(files) > 1:
        raise ConfigError(f"{files[0]}: is a study; give it alone")
    if study is None and out is not None:
        raise ConfigError(f"--out {out}: takes effect in a study, and {files[0]} is one run")
    if not gpus and (study is None or (overrides and study.runs)):
        raise ConfigError(f"{[*overrides, *files][0]}: give the GPUs of a run with --gpus")
    loaded: list[tuple[Resolved[ExperimentConfig], Study | None]]
    if study is not None:
        if not study.runs and not asked.benchmarks:  # what models need does not depend on them
            asked = replace(asked, benchmarks=Path("benchmarks"))
        stages = asked.stages(study, gpus)
        rows = [(stage.name, first_of(stage.needs, 5), _state(stage)) for stage in stages]
        print_table(("stage", "needs", "state"), rows, f"{files[0]} in {study.out}")
        loaded = [(study.runs[stage.name], study) for stage in stages if stage.kind == "run"]
        if served := plans.plan_models(study, hardware):
            title = f"{study.evaluation.batch_size} sequences, bf16, {hardware}"
            print_table(plans.MODEL_HEADINGS, served, title)
    else:
        loaded = []
        for one in files:
            run, path = load_run(one, overrides, asked.scale), Path(one.rpartition(":")[0])
            knows = (run.config.model and run.config.model.vocab_size) or Path(one).exists()
            loaded.append((run, None if knows else load_study(path, Asked(asked.scale))))
    if gpus and loaded:
        runs, lines = plans.plan_runs(loaded, gpus, hardware)
        print_table(plans.RUN_HEADINGS, plans.plan_rows(runs), f"{gpus} {hardware}", bare=True)
        echo("\n".join(lines))


def _state(stage: "Stage") -> str:
    field = stage.changed_field()
    return f"done with another {field}" if field else "done" if stage.is_done() else "to do"


@verb("run", example="mathcpt run run.yaml --out runs/mine\nmathcpt run quickstart --out results")
def run(
    config: Config,
    overrides: Overrides = None,
    *,
    out: Out = None,
    processes: Annotated[int | None, Option(min=1, help="processes of a training run; study: 2")] = None,
    hardware: Hardware = "h100",
    asked: StudyOptions,
) -> None:
    """Train one run here, or run the stages of a study that are not done.

    `run quickstart` is the whole pipeline at a size for two cores. Overrides apply to every run.
    """
    study = asked.study(config, overrides or (), out)
    if study is None:
        start_training(config, overrides or (), _run_folder(config, out), processes, asked.scale)
    run_study(study, asked, processes, hardware)


def run_study(study: "Study", asked: StudyOptions, processes: int | None, hardware: str = "h100") -> None:
    """Run the stages of a study that are not done, then print its report; exits if a stage fails."""
    from megatron_mathcpt.experiment.dry_run import check_scored, check_stages
    from megatron_mathcpt.experiment.local import run_stages
    from megatron_mathcpt.train.process import expects_gpu

    gpu, processes, start = expects_gpu(), processes or 2, time.monotonic()
    stages = asked.stages(study, processes)
    check_scored(study, hardware, asked.benchmarks)
    check_stages(study, stages, gpu=gpu)
    # SIGTERM becomes an exception, so that the running stage is stopped before this process exits.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outcomes = run_stages(stages, study.out, 1 if gpu else processes)  # all stages use the first GPUs
    ran = sum(outcome.state == "ran" for outcome in outcomes)
    echo(f"{ran} stages in {(time.monotonic() - start) / 60:.1f} min", err=True)
    status = next((outcome.status for outcome in outcomes if outcome.status), 0)
    if status:
        sys.exit(status)
    print_report(study.out / "report", study.name)


def _run_folder(config: str, out: Path | None) -> Path:
    if out is None:
        raise ConfigError(f"{config}: is one run; give its folder with --out")
    return out


@verb("submit", example="mathcpt submit run.yaml --cluster site.yaml --out runs/mine --dry-run")
def submit(
    config: Config,
    overrides: Overrides = None,
    *,
    out: Out = None,
    cluster: Annotated[str, Option(help="name under configs/clusters, or a path ending in .yaml")],
    dry_run: Annotated[bool, Option("--dry-run", help="print the scripts; submit nothing")] = False,
    allow_dirty: Annotated[bool, Option("--allow-dirty", help="copy uncommitted changes too")] = False,
    hardware: Hardware = "h100",
    asked: StudyOptions,
) -> None:
    """Submit one run, or the stages of a study, to Slurm; `cluster.nodes=4` overrides the cluster file."""
    from megatron_mathcpt.config.resolved_study import load_run
    from megatron_mathcpt.experiment import submit as slurm
    from megatron_mathcpt.experiment.dry_run import check_scored, check_stages
    from megatron_mathcpt.train.inputs import check_packages, resolve_inputs

    given = overrides or []
    theirs = [text.removeprefix("cluster.") for text in given if text.startswith("cluster.")]
    overrides = [text for text in given if not text.startswith("cluster.")]
    place = slurm.load_cluster(cluster, theirs)
    # Whether jobs have this environment, so that a package missing here is missing there.
    is_here = not (place.container or place.setup_script) and which(place.python) == sys.executable
    study = asked.study(config, overrides, out)
    if study is not None:
        stages = asked.stages(study, place.world_size, local=False)
        if dry_run:
            jobs = (slurm.stage_job(stage, place, study.out) for stage in stages)
            echo("\n".join(slurm.render(job, place) for job in jobs))
            return
        check_scored(study, hardware, asked.benchmarks)
        if is_here:
            check_stages(study, stages, gpu=True)
        done = slurm.submit_stages(stages, place, study.out, allow_dirty=allow_dirty)
        rows = [(name, state, job_id and Cell(job_id, str(job_id))) for name, (state, job_id) in done.items()]
        print_table(("stage", "state", "job"), rows, f"{config} on {place.name}")
        return
    settings = load_run(config, overrides, asked.scale).config
    job = slurm.run_job(settings, place, _run_folder(config, out).resolve())
    if dry_run:
        echo(slurm.render(job, place), nl=False)
        return
    if is_here:
        check_packages(settings, gpu=True)
    resolve_inputs(settings)  # so that a missing corpus or checkpoint is an error now, not after the queue
    job_id = slurm.submit_run(settings, job, place, allow_dirty=allow_dirty)
    if not print_json({"job": job_id, "folder": str(job.folder)}):
        echo(f"job {job_id}: {job.folder}")
