"""Build a corpus: read, filter, deduplicate, decontaminate, tokenize.

python tools/build_corpus.py configs/tiny/quickstart_corpus.yaml --out runs/corpus
python tools/build_corpus.py configs/paper/corpus_base.yaml --out runs/corpus_base --cluster h100
"""

from pathlib import Path
from typing import Any

import typer

from megatron_mathcpt.errors import run_command


def main(
    config: Path = typer.Argument(..., help="YAML of the build"),
    overrides: list[str] = typer.Argument(None, help="section.field=value"),
    out: Path = typer.Option(..., help="folder to build in"),
    workers: int = typer.Option(None, min=1, help="processes here, or tasks at once on a cluster"),
    cluster: str = typer.Option(None, help="submit to this Slurm site of configs/clusters, or YAML file"),
    ray: bool = typer.Option(False, help="run the tasks on the Ray cluster that RAY_ADDRESS names"),
    status: bool = typer.Option(False, help="only say how far the build in --out is"),
) -> None:
    """Build the corpus of CONFIG in --out and print what was kept and dropped; run again to go on."""
    run_command(lambda: _run(config, overrides or [], out, workers, (cluster, ray, status)))


def _run(
    path: Path, overrides: list[str], out: Path, workers: int | None, how: tuple[str | None, bool, bool]
) -> None:
    from rich.console import Console

    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.corpus import Corpus
    from megatron_mathcpt.data.build import build_corpus, describe_build, submit_corpus

    config = load_config(path, Corpus, overrides)
    cluster, ray, status = how
    if status:
        Console().print(describe_build(config, out))
    elif cluster:
        from megatron_mathcpt.experiment.submit import load_cluster

        job = submit_corpus(config, out, load_cluster(cluster), workers)
        Console().print(f"{out}: complete" if job is None else f"the last of its jobs is {job}")
    else:
        _show(build_corpus(config, out, workers, ray=ray).counts)


def _show(counts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    def number(name: str) -> Column:
        return Column(name, justify="right", no_wrap=True)

    headings = map(number, ("read", "kept", "rejected", "dropped"))
    table = Table("source", *headings, "by reason", title="Documents")
    for name, row in counts["sources"].items():
        reasons = "\n".join(f"{reason} {number:,}" for reason, number in row["dropped"].items())
        numbers = (row["read"], row["kept"], row["rejected"], sum(row["dropped"].values()))
        table.add_row(name, *(f"{number:,}" for number in numbers), reasons)
    tokens = Table("pool", "split", number("documents"), number("tokens"), title="Datasets")
    for pool, splits in counts["pools"].items():
        for split, row in splits.items():
            tokens.add_row(pool, split, f"{row['documents']:,}", f"{row['tokens']:,}")
    for shown in (table, tokens):
        Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
