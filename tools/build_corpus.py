"""Build a corpus: read, filter, deduplicate, decontaminate, tokenize.

python tools/build_corpus.py configs/tiny/quickstart_corpus.yaml --out runs/corpus
"""

from pathlib import Path
from typing import Any

import typer

from megatron_mathcpt.errors import run_command


def main(
    config: Path = typer.Argument(..., help="YAML of the build"),
    overrides: list[str] = typer.Argument(None, help="section.field=value"),
    out: Path = typer.Option(..., help="folder to build in"),
) -> None:
    """Build the corpus of CONFIG in --out and print what was kept and dropped."""
    run_command(lambda: _run(config, overrides or [], out))


def _run(path: Path, overrides: list[str], out: Path) -> None:
    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.corpus import Corpus
    from megatron_mathcpt.data.build import build_corpus

    _show(build_corpus(load_config(path, Corpus, overrides), out).counts)


def _show(counts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("source", "read", "kept", "dropped", "by reason", title="Documents")
    for name, row in counts["sources"].items():
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in row["dropped"].items())
        table.add_row(name, f"{row['read']:,}", f"{row['kept']:,}", f"{row['read'] - row['kept']:,}", reasons)
    tokens = Table("pool", "split", "documents", "tokens", title="Datasets")
    for pool, splits in counts["pools"].items():
        for split, row in splits.items():
            tokens.add_row(pool, split, f"{row['documents']:,}", f"{row['tokens']:,}")
    for shown in (table, tokens):
        Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
