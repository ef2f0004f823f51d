"""List the documents that a step of a run was trained on.

python tools/trace_step.py RUN STEP
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_mathcpt.errors import run_command

console = Console()


def main(
    run: Annotated[Path, typer.Argument(help="run folder")],
    step: Annotated[int, typer.Argument(help="optimizer step, from 1")],
) -> None:
    """Show sample, pool, document, record and the beginning of the text."""
    run_command(lambda: _show(run, step))


def _show(run: Path, step: int) -> None:
    from megatron_mathcpt.train.trace import trace_step

    table = Table("sample", "pool", "document", "record", "text", box=None)
    for seen in trace_step(run, step):
        table.add_row(str(seen.sample), seen.pool, str(seen.document), seen.record, repr(seen.text))
    console.print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
