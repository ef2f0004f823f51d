"""Convert between a run's checkpoints and Hugging Face Llama folders.

python tools/convert.py to-hf RUN --out DIR        newest checkpoint of a run (or one checkpoint) to DIR
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console()


@app.callback()
def convert() -> None:
    """Convert between a run's checkpoints and Hugging Face Llama folders."""


@app.command()
def to_hf(
    run: Annotated[Path, typer.Argument(help="run folder, or one checkpoint of it")],
    out: Annotated[Path, typer.Option(help="Hugging Face folder to write")],
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer folder; default: the corpus's")] = None,
) -> None:
    """Write a Hugging Face folder and compare its logits with Megatron-Core's."""
    run_command(lambda: _to_hf(run, out, tokenizer))


def _to_hf(run: Path, out: Path, tokenizer: Path | None) -> None:
    from megatron_mathcpt.checkpoint.export import export_to_hf

    done = export_to_hf(run, out, tokenizer)
    state = "already there" if done.was_there else "written"
    console.print(
        f"{out}: {state}; largest logit difference to Megatron-Core {done.max_abs_logit_difference:.2e}"
    )


if __name__ == "__main__":
    app()
