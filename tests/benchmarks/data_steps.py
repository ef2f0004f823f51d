"""CPU rates of the steps of a corpus build, and of writing an index, against Megatron-Core's own writer.

    python tests/benchmarks/data_steps.py CORPORA BENCHMARKS     (JSON lines, as in the README's two folders)
    python tests/benchmarks/data_steps.py CORPORA --planted 3000           recall of near-duplicate removal

MB are 10^6 bytes of text; seconds are CPU time of this process; a rate is the median of ROUNDS rounds in
which the steps take turns.

With `--planted`, copies of documents get a random share of their words replaced. The Jaccard similarity of a
pair is counted on its sets of word 5-grams; it is found when its copy is dropped. Next to it the recall that
14 bands of 8 rows have in theory, 1 - (1 - s^8)^14, before signatures are compared.
"""

import gzip
import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from measuring import by_turns, cost, medians, print_table

from megatron_mathcpt.config.corpus import Decontaminate, Filter, Quality, Repetition
from megatron_mathcpt.data import minhash
from megatron_mathcpt.data.decontaminate import Contamination
from megatron_mathcpt.data.filters import find_drops
from megatron_mathcpt.data.sources import Document, clean
from megatron_mathcpt.data.words import DIGITS, Hashes, Words, batches, cut_words
from megatron_mathcpt.formats.indexed_dataset import write_index
from tests.support.duplicates import duplicates_in_memory

ROUNDS = 5
WORDS, SIGNATURES = "words (shared by the next two)", "MinHash signatures, 112 values"
SEARCH = "decontamination search"
SHINGLE, BANDS, ROWS, THRESHOLD = 5, 14, 8, 0.7
BINS = ((0.9, 1.01), (0.8, 0.9), (0.7, 0.8), (0.6, 0.7), (0.0, 0.6))
INDEX_DOCUMENTS = 10_000_000


def load(folder: Path) -> list[Document]:
    documents = []
    for file in sorted(folder.glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            row = json.loads(line)
            text = row.get("text") or f"{row['question']}\n{row['solution']}"
            documents.append(Document(row["id"], text, file.name, len(documents) + 1))
    return documents


def hashes(words: Words) -> tuple[Hashes, Hashes, minhash.Signatures]:
    """Whole hash, number hash and signature of each text."""
    signatures = minhash.signatures(words, SHINGLE, BANDS * ROWS)
    return words.document_hashes(), words.select(words.kinds == DIGITS).document_hashes(), signatures


def steps(documents: list[Document], benchmarks: Path) -> dict[str, Callable[[], object]]:
    pages = Filter(repetition=Repetition(), quality=Quality())
    contamination = Contamination(Decontaminate(benchmarks=[str(benchmarks)]))
    parts = list(batches(documents, [len(d.text) for d in documents]))

    def words() -> list[Words]:
        return [cut_words([d.text for d in part]) for part in parts]

    cut = words()
    return {
        "clean and filter": lambda: find_drops([clean(d.text) for d in documents], Filter()),
        "clean and filter, rules for pages": lambda: find_drops([clean(d.text) for d in documents], pages),
        WORDS: words,
        SIGNATURES: lambda: [hashes(words) for words in cut],
        SEARCH: lambda: [
            contamination.search(found, np.zeros(len(part), np.bool_))
            for part, found in zip(parts, cut, strict=True)
        ],
    }


def index_seconds(folder: Path) -> tuple[float, float]:
    """CPU seconds to write an index: ours, and Megatron-Core's own writer."""
    from megatron.core.datasets.indexed_dataset import _IndexWriter

    lengths = np.random.default_rng(0).integers(1, 1300, INDEX_DOCUMENTS).astype(np.int32)
    as_list, ends = lengths.tolist(), list(range(INDEX_DOCUMENTS + 1))

    def megatron() -> None:
        with _IndexWriter(str(folder / "peer.idx"), np.int32) as writer:
            writer.write(as_list, None, ends)

    def own() -> None:
        with (folder / "ours.idx").open("wb") as file:
            write_index(file, lengths, np.dtype(np.int32))

    ours, theirs = cost(own), cost(megatron)
    assert (folder / "ours.idx").read_bytes() == (folder / "peer.idx").read_bytes()
    return ours.cpu, theirs.cpu


def rates(documents: list[Document], benchmarks: Path) -> None:
    megabytes = sum(len(d.text.encode()) for d in documents) / 1e6
    works = {step: partial(cost, work) for step, work in steps(documents, benchmarks).items()}
    seconds = {step: medians(costs, "cpu")[0] for step, costs in by_turns(works, ROUNDS).items()}
    seconds |= {f"{step}, words too": seconds[step] + seconds[WORDS] for step in (SIGNATURES, SEARCH)}
    title = f"{len(documents):,} documents, {megabytes:.1f} MB; {ROUNDS} rounds"
    print_table("step | MB per CPU second", [(s, megabytes / used) for s, used in seconds.items()], title)
    with tempfile.TemporaryDirectory() as name:
        mine, theirs = index_seconds(Path(name))
    print(f".idx of {INDEX_DOCUMENTS:,} documents: {mine:.2f} s, Megatron-Core {theirs:.2f} s")


def kept(texts: list[str]) -> np.ndarray:
    """Whether each text stays."""
    parts = [hashes(cut_words(batch)) for batch in batches(texts, [len(text) for text in texts])]
    whole, numbers, rows = map(np.concatenate, zip(*parts, strict=True))
    bands, apart = minhash.band_keys(rows, BANDS), np.zeros_like(numbers)
    return np.array(duplicates_in_memory(whole, apart, bands, rows, THRESHOLD)[0]) == minhash.KEPT


def jaccard(one: str, other: str) -> float:
    first, second = (set(cut_words([text]).ngrams(SHINGLE)[0].tolist()) for text in (one, other))
    return len(first & second) / len(first | second)


def near_duplicates(documents: list[Document], planted: int) -> None:
    draw = random.Random(0)
    texts = [d.text for d in documents if len(d.text.split()) >= 60]
    originals = draw.sample(texts, min(planted, len(texts)))
    copies = []
    for original in originals:
        share, words = draw.uniform(0, 0.08), original.split(" ")
        copies.append(" ".join(w if draw.random() >= share else f"w{draw.randrange(10**9)}" for w in words))
    gone = ~kept([*texts, *copies])[len(texts) :]
    similarity = np.array([*map(jaccard, originals, copies)])
    theory = 1 - (1 - similarity**ROWS) ** BANDS
    rows = []
    for low, high in BINS:
        here = (similarity >= low) & (similarity < high)
        recalls = [gone[here].mean(), theory[here].mean()] if here.any() else []
        rows.append((f"from {low}", here.sum(), gone[here].sum(), *recalls))
    print_table("Jaccard similarity | planted | found | recall | bands alone, in theory", rows)


def main(
    corpora: Path, benchmarks: Annotated[Path | None, typer.Argument()] = None, planted: int = 0
) -> None:
    documents = load(corpora)
    if benchmarks:
        rates(documents, benchmarks)
    if planted:
        near_duplicates(documents, planted)


if __name__ == "__main__":
    typer.run(main)
