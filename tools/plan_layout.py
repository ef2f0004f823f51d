"""Rank the layouts of a model on some GPUs: memory, step time, days and GPU-hours, and why others lose."""

import sys
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    model: Annotated[
        str, typer.Argument(help="name of a known shape (llama3-8b) or path of a HF config.json")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.field=value ... of a training config: precision, fusions, optimizer"),
    ] = None,
    *,
    gpus: Annotated[int, typer.Option(min=1, help="number of GPUs")],
    global_batch_size: Annotated[int, typer.Option(min=1, help="sequences per step")] = 1024,
    seq_length: Annotated[int, typer.Option(min=1, help="tokens per sequence")] = 4096,
    hardware: Annotated[
        str, typer.Option(help="h100, h200, a100, b200 (planner/data/hardware.yaml)")
    ] = "h100",
    memory_gib: Annotated[float | None, typer.Option(help="limit; default 90 % of the card")] = None,
    train_tokens: Annotated[float, typer.Option(help="token budget of the run")] = 1e10,
    top: Annotated[int, typer.Option(min=1, help="layouts to show")] = 10,
) -> None:
    from rich.console import Console

    from megatron_mathcpt.planner import text
    from megatron_mathcpt.planner.machine import load_machine
    from megatron_mathcpt.planner.search import search
    from megatron_mathcpt.planner.shapes import load_shape
    from megatron_mathcpt.planner.start import training_from_overrides

    shape, machine = load_shape(model), load_machine(hardware)
    training = training_from_overrides(
        overrides or (), seq_length=seq_length, global_batch_size=global_batch_size
    )
    result = search(shape, training, gpus, machine, limit_gib=memory_gib)
    piped = (
        140 if not sys.stdout.isatty() else None
    )  # a table's columns; rich takes 80 where it sees no terminal
    console = Console(highlight=False, width=piped)
    for part in text.describe(shape, training, machine, result, train_tokens=train_tokens, top=top):
        console.print(part, soft_wrap=isinstance(part, str))


if __name__ == "__main__":
    run_command(app)
