"""`mathcpt inspect`: look into a finished corpus."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_mathcpt.commands.main import say, typer_of, verb
from megatron_mathcpt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_mathcpt.data.inspection_views import Screen
    from megatron_mathcpt.formats.corpus_folder import CorpusFolder

app = typer_of("Look into a finished corpus: documents, drops, lengths, the way of one record.")
Folder = Annotated[Path, typer.Argument(help="folder of a finished corpus")]
Pool = Annotated[str | None, typer.Option(help="only this pool")]
Source = Annotated[str | None, typer.Option(help="only this source")]
Limit = Annotated[int, typer.Option(min=1, help="most documents to show")]
Most = Annotated[int, typer.Option("--characters", min=0, help="characters to show of each; 0: all")]
Record = Annotated[str, typer.Argument(help="id of a record, or FILE:LINE of a raw file")]


def _open(folder: Path, most: int = 0) -> "tuple[CorpusFolder, Screen]":
    from megatron_mathcpt.data.inspection_views import Screen
    from megatron_mathcpt.formats.corpus_folder import open_corpus

    return open_corpus(folder), Screen(most)


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
    from megatron_mathcpt.data.inspection import find_documents

    corpus, screen = _open(folder, most)
    found = find_documents(corpus, corpus.selections(pool, source, split), number, record, limit)
    screen.documents(corpus, found)


@verb(app, "dropped")
def show_dropped(
    folder: Folder,
    reason: Annotated[str | None, typer.Option(help="only this reason")] = None,
    source: Source = None,
    limit: Limit = 2,
    most: Most = 300,
) -> None:
    """Records that did not stay: counts, and examples of each reason with file and line."""
    from megatron_mathcpt.data.inspection import drop_examples, reasons_of

    corpus, screen = _open(folder, most)
    corpus.selections(None, source)
    reasons = reasons_of(corpus, source, reason)
    screen.drops(corpus, source)
    for name in reasons:
        screen.examples(corpus, name, drop_examples(corpus, name, source, limit))


@verb(app, "lengths")
def show_lengths(folder: Folder, pool: Pool = None, source: Source = None) -> None:
    """Distributions of tokens a document, and of steps a problem, of each source."""
    corpus, screen = _open(folder)
    for selection in corpus.by_source(pool, source):
        screen.lengths(corpus, selection)


@verb(app, "trace")
def trace_record(folder: Folder, record: Record) -> None:
    """Follow a record from its source to its fate, its dataset index and its tokens."""
    from megatron_mathcpt.data.inspection import trace

    corpus, screen = _open(folder)
    for found in trace(corpus, record):
        screen.trace(corpus, found)


@verb(app, "page")
def write_page(folder: Folder, out: Annotated[Path, typer.Option(help="HTML file to write")]) -> None:
    """One HTML page: sources, drops by reason, lengths, origin."""
    from megatron_mathcpt.data.inspection_views import page_content
    from megatron_mathcpt.formats.files import write_atomically
    from megatron_mathcpt.report.corpus_page import render_corpus

    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; give the name of a file")
    corpus, _ = _open(folder)
    try:
        write_atomically(out, render_corpus(page_content(corpus)).encode())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    say(f"Page: {out}")
