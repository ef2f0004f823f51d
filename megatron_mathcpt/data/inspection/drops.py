"""Records that did not stay: how many of each source for which reason, examples, decontamination hits."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from megatron_mathcpt.data.inspection.scan import json_bytes, scan_rows
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import CorpusFolder

REJECTED, CONTAMINATED = "rejected", "contaminated"


def drop_counts(corpus: CorpusFolder, source: str | None = None) -> dict[str, Counter[str]]:
    """Records by source and reason; rejected ones, which are unreadable, are counted as `rejected`."""
    rows = corpus.report["sources"].items()
    return {
        name: Counter({k: n for k, n in (*row["dropped"].items(), (REJECTED, row["rejected"])) if n})
        for name, row in rows
        if source in (None, name)
    }


def reasons_of(corpus: CorpusFolder, source: str | None, reason: str | None) -> list[str]:
    """All reasons of a source, or the one asked for; raises `ConfigError` if nothing was dropped for it."""
    found = sorted({name for row in drop_counts(corpus, source).values() for name in row})
    if reason is not None and reason not in found:
        raise ConfigError(
            f"reason '{reason}': nothing was dropped for it; there is {', '.join(found) or 'none'}"
        )
    return found if reason is None else [reason]


def drop_examples(
    corpus: CorpusFolder, reason: str, source: str | None = None, limit: int = 3
) -> Iterator[dict[str, Any]]:
    """The first `limit` records that went for `reason`; reads no further than it must."""
    counts = drop_counts(corpus, source)
    left = min(limit, sum(row[reason] for row in counts.values()))
    folder = REJECTED if reason == REJECTED else "dropped"
    needle = b"" if reason == REJECTED else b'{"reason":%b,' % json_bytes(reason)
    for pool, sources in corpus.pools.items():
        if not any(counts[name][reason] for name in sources if name in counts):
            continue
        for _, row in scan_rows(corpus.root / folder / f"{pool}.jsonl", needle):
            if left and corpus.shard(row["shard"]).source in counts and reason in (REJECTED, row["reason"]):
                yield row
                left -= 1
            if not left:
                return


def benchmark_counts(corpus: CorpusFolder, benchmark: str | None = None) -> dict[str, tuple[int, int]]:
    """Items and dropped documents of each benchmark, or of one.

    Raises `ConfigError` naming the benchmarks there are.
    """
    found = {name: (row["items"], len(row["hits"])) for name, row in corpus.report["benchmarks"].items()}
    if not found:
        raise ConfigError(f"{corpus.root}: built with decontaminate: null, so no benchmark was sought")
    if benchmark is not None and benchmark not in found:
        raise ConfigError(f"benchmark '{benchmark}': not in the build; there is {', '.join(found)}")
    return {name: row for name, row in found.items() if benchmark in (None, name)}


def contaminated(
    corpus: CorpusFolder, benchmark: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """The first documents that went because of a benchmark, their hit as `detail`; `limit` None: all."""
    left = sum(hits for _, hits in benchmark_counts(corpus, benchmark).values())
    left = left if limit is None else min(limit, left)
    total = sum(row[CONTAMINATED] for row in drop_counts(corpus).values())
    rows = drop_examples(corpus, CONTAMINATED, limit=total)
    return list(islice((row for row in rows if benchmark in (None, row["detail"]["benchmark"])), left))


def sample_drops(corpus: CorpusFolder, each: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Source, reason and row of at most `each` records of every source and reason, evenly spaced."""
    wanted = {
        (source, reason): {n * total // min(each, total) for n in range(min(each, total))}
        for source, counts in drop_counts(corpus).items()
        for reason, total in counts.items()
    }
    sources = {shard.name: shard.source for shard in corpus.shards}
    seen: Counter[tuple[str, str]] = Counter()
    for folder in ("dropped", REJECTED):
        for pool in corpus.pools:
            for _, row in scan_rows(corpus.root / folder / f"{pool}.jsonl"):
                key = sources[row["shard"]], REJECTED if folder == REJECTED else row["reason"]
                if seen[key] in wanted[key]:
                    yield *key, row
                seen[key] += 1
