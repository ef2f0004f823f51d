"""Tokenize JSON lines to an indexed dataset, without any other step.

python tools/tokenize_text.py docs.jsonl.zst --tokenizer DIR --out runs/docs
"""

from pathlib import Path

import typer

from megatron_mathcpt.errors import run_command


def main(
    files: list[Path] = typer.Argument(..., help="JSON lines, plain, .gz, .zst or .bz2, joined in order"),
    tokenizer: Path = typer.Option(..., help="Hugging Face folder, tokenizer.json, or Llama's .model file"),
    out: Path = typer.Option(..., help="prefix of the .bin and .idx files"),
    field: str = typer.Option("text", help="field that holds the text"),
    special_literals: str = typer.Option(
        "text", help="text or control: what the text of a special token becomes"
    ),
    engine: str = typer.Option("auto", help="auto, gigatoken or tokenizers"),
) -> None:
    """Tokenize FILES into --out.bin and --out.idx, each document closed by the end-of-text token."""
    run_command(lambda: _run(files, tokenizer, out, field, (special_literals, engine)))


def _run(files: list[Path], tokenizer: Path, out: Path, field: str, how: tuple[str, str]) -> None:
    from typing import get_args

    from rich.console import Console

    from megatron_mathcpt.data.tokenize import tokenize_files
    from megatron_mathcpt.data.tokenizer import EngineName, Literals, install_tokenizer, tokenizer_file
    from megatron_mathcpt.errors import ConfigError

    literals, engine = how
    for option, value, known in (("special-literals", literals, Literals), ("engine", engine, EngineName)):
        if value not in get_args(known):
            raise ConfigError(f"--{option} {value}: expected one of {', '.join(get_args(known))}")
    if tokenizer_file(tokenizer).suffix == ".model":
        tokenizer = install_tokenizer(tokenizer, out.with_name(f"{out.name}_tokenizer")).folder
    Console().print(tokenize_files(files, field, tokenizer, out, literals, engine))  # type: ignore[arg-type]


if __name__ == "__main__":
    typer.run(main)
