"""Show where a synthesized record comes from: its seed, every request and answer, every verdict."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    folder: Annotated[Path, typer.Argument(help="folder of a synthesis run, or of one shard")],
    record: Annotated[str, typer.Argument(help="id of an accepted record")],
) -> None:
    from rich.console import Console

    from megatron_mathcpt.synthesis.store import trace

    console = Console()
    console.print_json(data=trace(folder, record))


if __name__ == "__main__":
    run_command(app)
