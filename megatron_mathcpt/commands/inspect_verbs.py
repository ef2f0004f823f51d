"""`mathcpt inspect`: look into a finished corpus."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.commands.main import say, typer_of, verb
from megatron_mathcpt.errors import ConfigError

app = typer_of("Look into a finished corpus: documents, drops, lengths, the way of one record.")
Folder = Annotated[Path, typer.Argument(help="folder of a finished corpus")]
Pool = Annotated[str | None, typer.Option(help="only this pool")]
Source = Annotated[str | None, typer.Option(help="only this source")]
Limit = Annotated[int, typer.Option(min=1, help="most documents to show")]
Most = Annotated[int, typer.Option("--characters", min=0, help="characters to show of each; 0: all")]
Record = Annotated[str, typer.Argument(help="id of a record, or FILE:LINE of a raw file")]


@verb(app, "show")
def show_documents(
    folder: Folder,
    pool: Pool = None,
    source: Source = None,
    split: Annotated[str | None, typer.Option(help="only train or validation")] = None,
    number: Annotated[int | None, typer.Option(help="number among these, from 0")] = None,
    record: Annotated[str | None, typer.Option("--id", help="id of the record")] = None,
    limit: Limit = 5,
    most: Most = 1000,
) -> None:
    """Kept documents by number or id; with --split, by number in the indexed dataset."""
    from megatron_mathcpt.data.inspection import Screen

    Screen(folder, most).documents((pool, source, split), number, record, limit)


@verb(app, "dropped")
def show_dropped(
    folder: Folder,
    reason: Annotated[str | None, typer.Option(help="only this reason")] = None,
    source: Source = None,
    limit: Limit = 2,
    most: Most = 300,
) -> None:
    """Records that did not stay: counts, and examples of each reason with file and line."""
    from megatron_mathcpt.data.inspection import Screen

    Screen(folder, most).drops(reason, source, limit)


@verb(app, "lengths")
def show_lengths(folder: Folder, pool: Pool = None, source: Source = None) -> None:
    """Distributions of tokens a document, and of steps a problem, of each source."""
    from megatron_mathcpt.data.inspection import Screen

    Screen(folder).lengths(pool, source)


@verb(app, "trace")
def trace_record(folder: Folder, record: Record) -> None:
    """Follow a record from its source to its fate, its dataset index and its tokens."""
    from megatron_mathcpt.data.inspection import Screen

    Screen(folder).trace(record)


@verb(app, "page")
def write_page(folder: Folder, out: Annotated[Path, typer.Option(help="HTML file to write")]) -> None:
    """One HTML page: sources, drops by reason, lengths, origin."""
    from megatron_mathcpt.data.inspection import page_content
    from megatron_mathcpt.formats.corpus_folder import open_corpus
    from megatron_mathcpt.formats.files import write_atomically
    from megatron_mathcpt.report.page import render_corpus

    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; give the name of a file")
    content = page_content(open_corpus(folder))
    try:
        write_atomically(out, render_corpus(content).encode())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    say(f"Page: {out}")
