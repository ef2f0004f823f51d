"""Write report.json and one self-contained index.html on a results folder; print the scores."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import ConfigError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    root: Annotated[Path, typer.Argument(help="folder of results: one folder a run below it")],
    out: Annotated[Path | None, typer.Option(help="folder of the report; default ROOT/report")] = None,
    runs: Annotated[
        str, typer.Option(help="runs in order, with commas between; default all that are finished")
    ] = "",
    compare: Annotated[list[str] | None, typer.Option(help="B,A: test B − A; may be given again")] = None,
    title: Annotated[str, typer.Option(help="heading of the page; default the name of ROOT")] = "",
    study: Annotated[bool, typer.Option("--study", help="set the runs beside arXiv 2501.14002's")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="write the report, print nothing")] = False,
) -> None:
    from megatron_mathcpt.report.page import build_report, print_report
    from megatron_mathcpt.report.read import finished_runs

    names = [name for name in runs.split(",") if name] or finished_runs(root)
    pairs = [_pair(text) for text in compare or []]
    report = build_report(
        root, out or root / "report", runs=names, comparisons=pairs, title=title, study=study
    )
    if not quiet:
        print_report(report, title or root.resolve().name)


def _pair(text: str) -> tuple[str, str]:
    second, comma, first = text.partition(",")
    if not comma or not second or not first or "," in first:
        raise ConfigError(f"--compare {text}: expected two runs, as in --compare base2,base1")
    return second, first


if __name__ == "__main__":
    run_command(app)
