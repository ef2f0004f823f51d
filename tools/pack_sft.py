"""Pack the problem records of a corpus into samples for supervised fine-tuning.

python tools/pack_sft.py CORPUS POOL --seq-length N --out DIR
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megatron_mathcpt.errors import run_command

console = Console(soft_wrap=True)


def main(
    corpus: Annotated[Path, typer.Argument(help="corpus folder")],
    pool: Annotated[str, typer.Argument(help="pool of problem records")],
    seq_length: Annotated[int, typer.Option(help="tokens of a sample")],
    out: Annotated[Path, typer.Option(help="folder for `data.sft`")],
    packed: Annotated[bool, typer.Option(help="several records to a sample")] = True,
) -> None:
    """Tokenise prompts and responses, pack whole records, mark what is trained."""
    run_command(lambda: _pack(corpus, pool, seq_length, out, packed))


def _pack(corpus: Path, pool: str, seq_length: int, out: Path, packed: bool) -> None:
    from megatron_mathcpt.data.pack_sft import PackSettings, pack_pool

    counts = pack_pool(corpus, pool, PackSettings(seq_length, packed), out).counts
    filled = counts["trained_tokens"] / (counts["samples"] * seq_length)
    console.print(
        f"{out}: {counts['records']:,} records in {counts['samples']:,} samples, "
        f"{counts['dropped_too_long']:,} too long; {filled:.0%} of the positions trained; "
        f"{counts['tokens']:,} tokens as prompts and responses, {counts['corpus_tokens']:,} as text"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
