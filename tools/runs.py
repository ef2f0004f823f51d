"""List the runs of a results folder: state, steps, tokens, losses, scores."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(root: Annotated[Path, typer.Argument(help="folder of results")]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from megatron_mathcpt.report.read import LIST_HEADINGS, list_runs

    first, *rest = LIST_HEADINGS
    columns = (Column(first, no_wrap=True), *(Column(heading, overflow="fold") for heading in rest))
    table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, padding=0, collapse_padding=True)
    for row in list_runs(root):
        table.add_row(*map(Text, row))
    Console().print(table)


if __name__ == "__main__":
    run_command(app)
