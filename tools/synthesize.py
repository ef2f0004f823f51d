"""Make new problem-solving data from seed problems: CONFIG [section.field=value ...] --out DIR."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_mathcpt.errors import run_command

if TYPE_CHECKING:
    from megatron_mathcpt.config.synthesis import SynthesisConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the synthesis run")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    *,
    out: Annotated[Path, typer.Option(help="folder of the shards")],
    shard: Annotated[str, typer.Option(help="INDEX/COUNT: this part of the seeds, from 0")] = "0/1",
    pilot: Annotated[
        int | None, typer.Option(min=1, help="run only so many seeds; count what is accepted")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="show the first prompts; spend nothing")] = False,
    scripted: Annotated[
        bool, typer.Option("--scripted", help="rehearse: a script plays the servers")
    ] = False,
    accept_model: Annotated[bool, typer.Option("--accept-model", help="the served model may differ")] = False,
) -> None:
    from rich.console import Console

    from megatron_mathcpt.config import load_config
    from megatron_mathcpt.config.synthesis import SynthesisConfig
    from megatron_mathcpt.synthesis.synthesize import (
        SeedShard,
        first_prompts,
        pilot_tables,
        summary_tables,
        synthesize,
    )
    from megatron_mathcpt.synthesis.synthesize import pilot as run_pilot

    settings = load_config(config, SynthesisConfig, overrides or ())
    console = Console()
    if preview:
        for name, prompt in first_prompts(settings).items():
            console.rule(name)
            console.print(prompt, markup=False, highlight=False)
        return
    with _rehearsal(settings) if scripted else nullcontext(settings) as settings:
        tables: list[Any] = (
            pilot_tables(run_pilot(settings, out, pilot, accept_model=accept_model))
            if pilot
            else summary_tables(synthesize(settings, out, SeedShard.parse(shard), accept_model=accept_model))
        )
    for table in tables:
        console.print(table, "")


def _rehearsal(settings: "SynthesisConfig") -> "AbstractContextManager[SynthesisConfig]":
    """The script passes problems off as new that no seed file of the same run's seed holds."""
    from megatron_mathcpt.data.problems import ProblemMix, training_problems
    from megatron_mathcpt.synthesis.scripted import rehearse

    return rehearse(settings, training_problems(ProblemMix(train_problems=6000), settings.seed + 1))


if __name__ == "__main__":
    run_command(app)
