"""Score a model on benchmark files through lm-eval; every sample is kept, and a killed run goes on.

The model is a Hugging Face folder, or with --backend megatron a run's checkpoint too.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Hugging Face folder, run folder or checkpoint")],
    out: Annotated[Path, typer.Option(help="folder of the results")],
    task: Annotated[list[str] | None, typer.Option(help="NAME=FILE or a folder of files")] = None,
    benchmarks: Annotated[
        Path | None,
        typer.Option(help="folder of benchmark sets, or `samples` for the small ones of this package"),
    ] = None,
    sets: Annotated[str, typer.Option(help="sets of --benchmarks, with commas; or `all`")] = "",
    shots: Annotated[int, typer.Option(min=0, help="add a few-shot form with so many worked examples")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="items of each task")] = None,
    benchmark_limit: Annotated[int | None, typer.Option(min=1, help="items of each benchmark set")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences generated at a time")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="answers drawn for each item")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    backend: Annotated[str, typer.Option(help="hf or megatron")] = "hf",
    params_dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16")] = "auto",
    tensor_model_parallel_size: Annotated[int, typer.Option(min=1)] = 1,
    pipeline_model_parallel_size: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    from megatron_mathcpt.evaluation.evaluate import evaluate
    from megatron_mathcpt.evaluation.tasks import Request, plan

    request = Request(tuple(task or ()), benchmarks, sets, shots, limit, benchmark_limit)
    files, config = plan(
        request,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        samples=samples,
        temperature=temperature,
        seed=seed,
        backend=backend,
        params_dtype=params_dtype,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
    )
    _show(evaluate(model, files, config, out))


def _show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=results["model"])
    table.add_column("task", no_wrap=True)
    for column in ("items", "correct", "ungraded", "accuracy in %", "± s.e."):
        table.add_column(column, justify="right")
    for name, row in results["tasks"].items():
        counts = [str(row[key]) for key in ("n", "correct", "ungraded")]
        table.add_row(name, *counts, f"{100 * row['accuracy']:.2f}", f"{100 * row['stderr']:.2f}")
        for score, found in row.get("samples", {}).items():
            numbers = f"{100 * found['value']:.2f}", f"{100 * found['stderr']:.2f}"
            table.add_row(f"  {score}", "", "", "", *numbers)
    for name, best in results["aggregates"].get("higher_of_forms", {}).items():
        numbers = f"{100 * best['accuracy']:.2f}", f"{100 * best['stderr']:.2f}"
        table.add_row(f"higher of forms: {name}", "", "", "", *numbers)
    mean = results["aggregates"].get("mean_of_four")
    if mean:
        numbers = f"{100 * mean['accuracy']:.2f}", f"{100 * mean['stderr']:.2f}"
        table.add_row("mean of four", "", "", "", *numbers)
    Console().print(table)


if __name__ == "__main__":
    run_command(app)
