"""The first steps: a config to fill in, and the whole pipeline on a model and data of one's own."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

from typer import Argument, Option, echo

from megatron_mathcpt.commands.main import verb
from megatron_mathcpt.commands.run_verbs import StudyOptions, run_study
from megatron_mathcpt.errors import ConfigError

_NEXT = {
    "experiment": "mathcpt dry-run {} --gpus 1",
    "corpus": "mathcpt build {} --out corpora/NAME",
    "synthesis": "mathcpt synthesize {} --out synthesized/NAME --preview",
    "study": "mathcpt run {} --benchmarks BENCHMARKS",
}


@verb("new", example="mathcpt new study study.yaml --model models/base --data my.jsonl")
def new(
    kind: Annotated[Literal["experiment", "corpus", "synthesis", "study"], Argument()],
    file: Annotated[Path, Argument(help="YAML file to write; a study has further files next to it")],
    model: Annotated[
        str | None, Option(help="Hugging Face folder or id; synthesis: name at its server")
    ] = None,
    data: Annotated[
        list[str] | None, Option(help="raw file, folder or glob; experiment: a corpus folder")
    ] = None,
) -> None:
    """Write a complete, commented config, in which DECIDE marks what only you can know."""
    from megatron_mathcpt.experiment.templates import find_values, write_new

    write_new(kind, file, find_values(kind, model, data or (), f"runs/{file.stem}"))
    echo(f"{file}: written; decide what is marked DECIDE, then run: {_NEXT[kind].format(quote(str(file)))}")


@verb("quickstart", example="mathcpt quickstart --model models/base --data my.jsonl --out runs/first")
def quickstart(
    out: Annotated[Path, Option(help="folder of all results")],
    model: Annotated[str | None, Option(help="Hugging Face folder or id of the model to continue")] = None,
    data: Annotated[list[str] | None, Option(help="texts, problems or chats; may be repeated")] = None,
    benchmarks: Annotated[Path | None, Option(help="folder of benchmark sets; default: 16 items")] = None,
    train_tokens: Annotated[int | None, Option(min=1, help="default: one pass, or some minutes")] = None,
    processes: Annotated[int | None, Option(min=1, help="of training; default: 1 GPU or 2 cores")] = None,
) -> None:
    """Continue a model on your data, score it before and after, and export it: build to report.

    Without --model and --data: three models from scratch on text of this machine. Started again, it resumes.
    """
    from megatron_mathcpt.device import on_gpu
    from megatron_mathcpt.experiment.templates import own_study
    from megatron_mathcpt.formats.benchmark import SAMPLES
    from megatron_mathcpt.formats.run_folder import METRICS, read_metrics

    if bool(model) != bool(data) or (train_tokens and not model):
        raise ConfigError("quickstart: give --model and --data, or neither, for models from scratch")
    out, config = out.resolve(), "quickstart"
    processes = processes or (1 if model and on_gpu() else 2)
    if model and data:
        config = str(out / "study.yaml")
        benchmarks = own_study(out, model, data, benchmarks or SAMPLES, train_tokens, processes)
    asked = StudyOptions(benchmarks=benchmarks)
    study = asked.study(config, (), None if model else out)
    assert study is not None
    run_study(study, asked, processes)
    if model:
        rows = read_metrics(study.out / "own" / METRICS)
        losses = [row.validation["own"] for row in rows if row.validation]
        echo(f"Loss on held-out own data, in nats a token: {losses[0]:.4f} before, {losses[-1]:.4f} after.")
        echo(f"Model: {study.out / 'own' / 'hf'}, a Hugging Face folder")
        echo(f"Configs: {config}, study_corpus.yaml, study_run.yaml. To try another setting, add to `runs`:")
        echo("    faster: {from: own, set: {optimizer.lr: 1e-4}}")
        echo(f"and run what is new: mathcpt run {config} --benchmarks {benchmarks} --compare own:faster")
