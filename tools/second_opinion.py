"""Ask a language model about every sample of an evaluation, and set its verdicts beside the rules'.

Writes EVALUATION_judge.json, and every reply to EVALUATION_judge.jsonl; scores stay what they are.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_mathcpt.errors import EvaluationError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    *,
    evaluation: Annotated[Path, typer.Argument(help="folder that tools/evaluate.py wrote")],
    model: Annotated[str, typer.Option(help="model id of the judge")],
    endpoint: Annotated[list[str], typer.Option(help="http://host:port/v1; may be given again")],
    key_variable: Annotated[str | None, typer.Option(help="environment variable that holds the key")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest reply")] = 1024,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.evaluation.second_opinion import compare
    from megatron_mathcpt.formats.files import read_json_lines, write_atomically
    from megatron_mathcpt.formats.manifest import load_manifest

    load_manifest(evaluation, "evaluation")
    files = sorted(evaluation.glob("samples_*.jsonl"))
    rows = {file.stem.removeprefix("samples_"): read_json_lines(file) for file in files}
    every = [row for found in rows.values() for row in found]
    replies = evaluation.with_name(f"{evaluation.name}_judge.jsonl")
    opinions = iter(asyncio.run(_ask(every, model, endpoint, key_variable, max_tokens, replies)))
    tasks = {name: compare(found, [next(opinions) for _ in found]) for name, found in rows.items()}
    out = evaluation.with_name(f"{evaluation.name}_judge.json")
    result = {"judge": model, "tasks": tasks}
    write_atomically(out, json.dumps(result, indent=1, ensure_ascii=False).encode())
    table = Table("task", "samples", "right by rules", f"by {model}", "agree in %", title=str(out))
    for column in ("only rules", "only judge", "no verdict"):
        table.add_column(column, justify="right")
    for name, found in tasks.items():
        counts = [str(found[key]) for key in ("n", "rules_correct", "judge_correct")]
        apart = [str(len(found[key])) for key in ("only_rules_right", "only_judge_right")]
        without = str(found["judge_without_verdict"])
        table.add_row(name, *counts, f"{100 * found['agreement']:.2f}", *apart, without)
    Console().print(table)


async def _ask(
    rows: list[dict[str, Any]],
    model: str,
    endpoints: list[str],
    key_variable: str | None,
    max_tokens: int,
    path: Path,
) -> list[bool | None]:
    from pydantic import ValidationError

    from megatron_mathcpt.config.synthesis import Sampling, Server
    from megatron_mathcpt.evaluation.second_opinion import ask_judge
    from megatron_mathcpt.synthesis.client import UNANSWERED, Client, request_body
    from megatron_mathcpt.synthesis.method import Prompt, Request

    try:
        server = Server(model=model, endpoints=tuple(endpoints), key_variable=key_variable)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise EvaluationError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error
    async with Client({"judge": server}) as client:

        async def ask(prompt: str) -> str | None:
            sampling = Sampling(temperature=0, max_tokens=max_tokens)
            request = Request("judge", Prompt("", prompt, ""), sampling, 0)
            answer = await client.send("judge", request_body(request, server))
            return None if answer.error and answer.error.startswith(UNANSWERED) else answer.text

        return await ask_judge(rows, model, ask, path)


if __name__ == "__main__":
    run_command(app)
