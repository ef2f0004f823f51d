"""Fetch one of the study's public sources from the Hugging Face hub, with checksums; run again to verify.

python tools/download.py --list
python tools/download.py open_web_math --out corpora/openwebmath
"""

from pathlib import Path

import typer

from megatron_mathcpt.errors import DataError, run_command


def main(
    source: str = typer.Argument(None, help="name of the source, see --list"),
    out: Path = typer.Option(None, help="folder to fetch to"),
    list_: bool = typer.Option(False, "--list", help="show the sources, their licences and sizes"),
) -> None:
    """Fetch SOURCE to --out; goes on where it was stopped, and fetches damaged files again."""
    run_command(_show if list_ else lambda: _download(source, out))


def _show() -> None:
    from rich.console import Console
    from rich.table import Table

    from megatron_mathcpt.data.downloads import PUBLISHED

    table = Table(
        "source", "dataset", "files", "licence", "GB", "remark", title="Public sources of the study"
    )
    for name, found in PUBLISHED.items():
        size = "unknown" if found.gigabytes is None else f"{found.gigabytes:g}"
        row = (found.repository, found.pattern, found.licence or "see its page", size, found.remark)
        table.add_row(name, *row)
    Console().print(table)


def _download(source: str | None, out: Path | None) -> None:
    from rich.console import Console

    from megatron_mathcpt.data.downloads import PUBLISHED, download

    if source is None or out is None:
        raise DataError("give a source and --out, or --list")
    console = Console(soft_wrap=True)
    fetched = download(source, out, console.print)
    total = sum(file["bytes"] for file in fetched.files.values()) / 1e9
    done = f"{len(fetched.new)} files fetched" if fetched.new else "complete, verified"
    console.print(
        f"{out}: {done}; {len(fetched.files)} files, {total:.2f} GB, revision {fetched.revision}; "
        f"in a corpus: path {out / PUBLISHED[source].pattern}, adapter {PUBLISHED[source].adapter}",
        markup=False,
    )


if __name__ == "__main__":
    typer.run(main)
