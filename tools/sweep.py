"""Score every checkpoint of a run, or several models, and compare each with the first on the same items."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    *,
    models: Annotated[
        list[Path], typer.Argument(help="run folders (all their checkpoints), or model folders")
    ],
    out: Annotated[Path, typer.Option(help="folder of the sweep")],
    task: Annotated[list[str] | None, typer.Option(help="NAME=FILE; may be given again")] = None,
    benchmarks: Annotated[Path | None, typer.Option(help="folder of benchmark sets, or `samples`")] = None,
    sets: Annotated[str, typer.Option(help="sets of --benchmarks, with commas; or `all`")] = "",
    shots: Annotated[int, typer.Option(min=0, help="add a few-shot form with so many worked examples")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="items of each task")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences generated at a time")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="answers drawn for each item")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    backend: Annotated[str, typer.Option(help="megatron or hf")] = "megatron",
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from megatron_mathcpt.evaluation.plan import Request, plan
    from megatron_mathcpt.evaluation.sweep import find_models, headline, plot, sweep

    request = Request(tuple(task or ()), benchmarks, sets, shots, limit, None)
    files, config = plan(
        request,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        samples=samples,
        temperature=temperature,
        backend=backend,
    )
    result = sweep(find_models(models), files, config, out)
    numbers = (Column(name, no_wrap=True) for name in ("trained tokens", *config.tasks))
    table = Table("model", *numbers, title="accuracy in % ± standard error")
    for row in result["models"]:
        scores = [
            f"{100 * value:.2f} ± {100 * error:.2f}" for value, error in map(headline, row["tasks"].values())
        ]
        table.add_row(row["model"], str(row["consumed_tokens"] or ""), *scores)
    console = Console()
    console.print(table)
    for name, comparisons in result["comparisons"].items():
        for found in comparisons:
            low, high = (f"{100 * end:+.2f}" for end in found["interval_95"])
            p_value = f", p = {found['p_holm']:.3g} (Holm)" if "p_holm" in found else ""
            console.print(
                f"{name}: {found['model']} against {result['models'][0]['model']}: "
                f"{100 * found['difference']:+.2f} points [{low}, {high}]{p_value}: "
                f"{found['verdict']}",
                highlight=False,
            )
    plot(result, out / "sweep.svg")
    console.print(f"Plot: {out / 'sweep.svg'}", highlight=False)


if __name__ == "__main__":
    run_command(app)
