"""The copies of a document: those dropped for it, or the one that stays in its place; how alike they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_mathcpt.data.inspection.scan import json_bytes, scan_rows
from megatron_mathcpt.data.inspection.trace import Gone, trace
from megatron_mathcpt.data.minhash import DUPLICATES, signatures
from megatron_mathcpt.data.words import cut_words
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept


@dataclass(frozen=True)
class Copy:
    """A dropped duplicate; `jaccard` estimates its likeness to the document that stays."""

    pool: str
    row: dict[str, Any]
    jaccard: float


@dataclass(frozen=True)
class Group:
    """The document that stays and its copies, exact ones too."""

    kept: Kept
    copies: tuple[Copy, ...]


def find_copies(corpus: CorpusFolder, record: str) -> list[Group]:
    """The group of each record with this id (or `FILE:LINE`), that has copies or is one itself.

    Raises `ConfigError` when the record is unknown, or was dropped for another reason.
    """
    rule(corpus)
    groups, others = {}, []
    for found in trace(corpus, record):
        if isinstance(found, Gone) and found.row["reason"] not in DUPLICATES.values():
            others.append(f"{found.fate} ({found.row['reason']})")
        else:
            kept = original(corpus, found.row) if isinstance(found, Gone) else found
            groups[kept.pool, kept.number] = kept
    if not groups:
        raise ConfigError(f"record '{record}': {', '.join(others)}, so it was not compared with others")
    return [_group(corpus, kept) for kept in groups.values()]


def original(corpus: CorpusFolder, dropped: dict[str, Any]) -> Kept:
    """The document that stays in the place of a dropped duplicate."""
    detail = dropped["detail"]
    kept = corpus.at(corpus.shard(detail["shard"]), detail["line"])
    assert kept is not None, f"{detail} is not kept"
    return kept


def rule(corpus: CorpusFolder) -> dict[str, Any]:
    """The build's rule of duplicates; raises `ConfigError` if it had none."""
    found: dict[str, Any] | None = corpus.manifest.config["deduplicate"]
    if found is None:
        raise ConfigError(f"{corpus.root}: built with deduplicate: null, so no copies were sought")
    return found


def likeness(corpus: CorpusFolder, text: str, others: Sequence[str]) -> list[float]:
    """Jaccard similarity of the shingles of `text` to each of `others`, estimated as the build does."""
    settings = rule(corpus)
    values = settings["bands"] * settings["rows"]
    first, *rest = (signatures(cut_words([t]), settings["shingle_words"], values) for t in (text, *others))
    return [float(np.mean(first == row)) for row in rest]


def _group(corpus: CorpusFolder, kept: Kept) -> Group:
    place = {"shard": kept.shard.name, "line": kept.line}
    needle = b'"shard":%b,"line":%d}' % (json_bytes(kept.shard.name), kept.line)
    found = [
        (pool, row)
        for pool in corpus.pools
        for _, row in scan_rows(corpus.root / "dropped" / f"{pool}.jsonl", needle)
        if row["reason"] in DUPLICATES.values() and place.items() <= row["detail"].items()
    ]
    alike = likeness(corpus, kept.row["text"], [row["text"] for _, row in found])
    copies = (Copy(pool, row, value) for (pool, row), value in zip(found, alike, strict=True))
    return Group(kept, tuple(sorted(copies, key=lambda copy: -copy.jaccard)))
