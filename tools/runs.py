"""List the runs of a results folder, show one, or compare two: their settings and their scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
Root = Annotated[Path, typer.Argument(help="folder of results")]
Name = Annotated[str, typer.Argument(help="a run: its folder below ROOT")]


@app.command("list")
def list_runs(root: Root) -> None:
    """One row a run: state, steps, tokens, losses, scores."""
    from megatron_mathcpt.report import runs

    _print(runs.LIST_HEADINGS, runs.list_runs(root))


@app.command()
def show(root: Root, name: Name) -> None:
    """What a run was made from and what it came to."""
    from megatron_mathcpt.report import runs

    _print(("", name), runs.show_run(root, name))


@app.command()
def compare(root: Root, second: Name, first: Name) -> None:
    """Settings that differ, and the paired tests SECOND - FIRST."""
    from rich.console import Console

    from megatron_mathcpt.report import runs

    settings, sentences = runs.compare_two(root, second, first)
    if settings:
        _print(("setting", second, first), settings)
    else:
        Console().print("Same settings.")
    for sentence in sentences:
        Console(markup=False).print(sentence, highlight=False)


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    first, *rest = headings
    columns = (Column(first, no_wrap=True), *(Column(heading, overflow="fold") for heading in rest))
    table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, padding=0, collapse_padding=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


if __name__ == "__main__":
    run_command(app)
