"""Overlap of test items with training documents, and the scores without the items that overlap."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    *,
    evaluation: Annotated[Path, typer.Argument(help="folder that tools/evaluate.py wrote")],
    documents: Annotated[list[Path], typer.Option(help="*.jsonl with a field `text`, or their folder")],
    task: Annotated[list[str], typer.Option(help="NAME=FILE, as it was evaluated; may be given again")],
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of an item that counts")] = 0.5,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.data.decontaminate import overlap_report
    from megatron_mathcpt.evaluation.tasks import named_files
    from megatron_mathcpt.formats.files import write_atomically

    files = {name: path for text in task for name, path in named_files(text).items()}
    result = overlap_report(evaluation, files, documents, threshold)
    out = evaluation.with_name(f"{evaluation.name}_contamination.json")
    write_atomically(out, json.dumps(result, indent=1, ensure_ascii=False).encode())
    table = Table("task", "items", "overlapping", "accuracy in %", "without them", title=str(out))
    for name, scores in result["tasks"].items():
        shown = [_percent(scores[part]["accuracy"]) for part in ("all", "clean")]
        table.add_row(name, str(scores["all"]["n"]), str(scores["overlapping"]["n"]), *shown)
    Console().print(table)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


if __name__ == "__main__":
    run_command(app)
