"""Make the three raw pools and the held-out problems: from this machine's Python, or from own data."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder to write")],
    data: Annotated[Path | None, typer.Option(help="folder of own <pool>.jsonl[.gz]")] = None,
    seed: Annotated[int, typer.Option(help="seed of the problems and of the held-out choice")] = 0,
) -> None:
    """Write general, math_corpus and problem_solving, and the evaluation split, under OUT."""
    run_command(lambda: _make(out, data, seed))


def _make(out: Path, data: Path | None, seed: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.data.corpora import make_corpora

    manifest = make_corpora(out, data, seed)
    table = Table("file", "records", "MB", title=f"corpora in {out}")
    for name, file in manifest.outputs.items():
        table.add_row(name, str(manifest.counts[Path(name).stem]), f"{file.bytes / 1e6:.2f}")
    Console().print(table)


if __name__ == "__main__":
    app()
