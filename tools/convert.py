"""Convert between checkpoints and Hugging Face Llama folders.

python tools/convert.py to-hf RUN --out DIR       a run's chosen checkpoint (or one checkpoint) to DIR
python tools/convert.py from-hf FOLDER --out DIR  a checkpoint for `init.checkpoint`, in any layout
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megatron_mathcpt.errors import run_command

if TYPE_CHECKING:
    from megatron_mathcpt.checkpoint.convert import Converted

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(soft_wrap=True)
Verify = Annotated[bool, typer.Option(help="compare both models' logits")]


@app.command()
def to_hf(
    run: Annotated[Path, typer.Argument(help="run folder, or one checkpoint of it")],
    out: Annotated[Path, typer.Option(help="Hugging Face folder to write")],
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer folder; default: the corpus's")] = None,
    verify: Verify = True,
) -> None:
    """Write a Hugging Face folder from a checkpoint."""
    from megatron_mathcpt.checkpoint.convert import export_to_hf

    run_command(lambda: _show(out, export_to_hf(run, out, tokenizer, verify=verify)))


@app.command()
def from_hf(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder of a Llama")],
    out: Annotated[Path, typer.Option(help="checkpoint folder to write")],
    verify: Verify = True,
) -> None:
    """Write a checkpoint from Hugging Face weights, one tensor in memory at a time."""
    from megatron_mathcpt.checkpoint.convert import import_from_hf

    run_command(lambda: _show(out, import_from_hf(folder, out, verify=verify)))


def _show(out: Path, done: "Converted") -> None:
    state = "already there" if done.was_there else "written"
    difference = done.max_abs_logit_difference
    proof = "logits not compared" if difference is None else f"largest logit difference {difference:.2e}"
    console.print(f"{out}: {state}; {proof}")


if __name__ == "__main__":
    app()
