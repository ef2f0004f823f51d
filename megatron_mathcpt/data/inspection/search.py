"""Kept documents by number, by id, or by a text in them."""

from collections.abc import Iterator, Sequence

from megatron_mathcpt.data.inspection.scan import json_bytes, scan_rows
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept, Selection


def find_documents(
    corpus: CorpusFolder,
    selections: Sequence[Selection],
    number: int | None = None,
    record: str | None = None,
    text: str | None = None,
) -> Iterator[Kept]:
    """Documents of `selections`: all, or the one with this number, those with this id, those with this text.

    Raises `ConfigError` when two of these are given, when a number could mean several pools, and when
    there is no such document.
    """
    if sum(wanted is not None for wanted in (number, record, text)) > 1:
        raise ConfigError("give one of number, id and text")
    if number is not None:
        if len(selections) > 1:
            pools = ", ".join(selection.pool for selection in selections)
            raise ConfigError(f"number {number}: name a pool or source too; there is {pools}")
        return corpus.choose(selections[0], [number])
    if record is not None:
        return _found(corpus, selections, record=record)
    return _found(corpus, selections, text=text or "")


def _found(
    corpus: CorpusFolder, selections: Sequence[Selection], record: str | None = None, text: str = ""
) -> Iterator[Kept]:
    """Those with an id, or, in either case of ASCII letters, with a text."""
    needle = json_bytes(text)[1:-1] if record is None else b'"id":' + json_bytes(record)
    sought, none = text.encode().lower(), True
    for selection in selections:
        file = corpus.root / "documents" / f"{selection.pool}.jsonl"
        rows = scan_rows(file, needle, any_case=record is None)
        fits = (
            number
            for number, row in rows
            if (row["id"] == record if record is not None else sought in row["text"].encode().lower())
        )
        for kept in corpus.documents(selection.pool, fits):
            if selection.source in (None, kept.shard.source) and selection.split in (None, kept.split):
                none = False
                yield kept
    if none:
        names = "; ".join(map(str, selections))
        if record is not None:
            raise ConfigError(f"id '{record}': no kept document of {names}; 'trace' tells what became of it")
        raise ConfigError(f"text '{text}': in no document of {names}")
