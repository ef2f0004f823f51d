"""Score a Hugging Face model folder on benchmark files through lm-eval; every sample is kept."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import EvaluationError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Hugging Face folder: config.json, weights, tokenizer")],
    out: Annotated[Path, typer.Option(help="folder of the results")],
    task: Annotated[list[str] | None, typer.Option(help="NAME=FILE; may be given again")] = None,
    benchmarks: Annotated[
        Path | None, typer.Option(help="benchmarks folder: adds gsm8k, math, gaokao_public, zhongkao_public")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="items of each task")] = None,
    benchmark_limit: Annotated[int | None, typer.Option(min=1, help="items of each benchmark set")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="sequences generated at a time")] = 64,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.config.evaluation import EvaluationConfig
    from megatron_mathcpt.evaluation.items import STUDY_SETS, find_sets
    from megatron_mathcpt.evaluation.run import evaluate

    files = dict(_named_file(text) for text in task or [])
    limits = dict.fromkeys(files, limit)
    if benchmarks:
        files |= find_sets(benchmarks, STUDY_SETS)
        limits |= dict.fromkeys(STUDY_SETS, benchmark_limit or limit)
    if not files:
        raise EvaluationError("no task: give --task NAME=FILE or --benchmarks DIR")
    config = EvaluationConfig(
        tasks=tuple(files),
        limits={name: count for name, count in limits.items() if count},
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    results = evaluate(model, files, config, out)
    table = Table("task", "items", "correct", "ungraded", "accuracy in %", "± standard error")
    for name, row in results["tasks"].items():
        counts = [str(row[key]) for key in ("n", "correct", "ungraded")]
        table.add_row(name, *counts, f"{100 * row['accuracy']:.2f}", f"{100 * row['stderr']:.2f}")
    Console().print(table)


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not name.replace("_", "").isalnum() or not file:
        raise EvaluationError(f"--task {text}: expected NAME=FILE, NAME of letters, digits and _")
    return name, Path(file)


if __name__ == "__main__":
    run_command(app)
