"""CPU rates of the steps of a corpus build, beside datatrove's on the same text, and of writing an index.

python tests/benchmarks/data_steps.py CORPORA BENCHMARKS     (JSON lines, as in the README's two folders)

MB are 10^6 bytes of text; seconds are CPU time of this process; a rate is the median of ROUNDS rounds in
which the steps take turns. datatrove runs on fewer documents, as it is slower, and where its extra
`processing` is installed and spaCy, which its word tokenizer needs.
"""

import argparse
import gzip
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_mathcpt.config.corpus import Decontaminate, Filter, Quality, Repetition
from megatron_mathcpt.data.decontaminate import Contamination
from megatron_mathcpt.data.filters import find_drops
from megatron_mathcpt.data.minhash import number_hashes, signatures, whole_hashes
from megatron_mathcpt.data.sources import Document, clean
from megatron_mathcpt.data.words import Words, batches, cut_words
from megatron_mathcpt.formats.indexed_dataset import write_index

ROUNDS = 5
PEER_DOCUMENTS = 60
PEER = "datatrove signatures"


def load(folder: Path) -> list[Document]:
    documents = []
    for file in sorted(folder.glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            row = json.loads(line)
            text = row.get("text") or f"{row['question']}\n{row['solution']}"
            documents.append(Document(row["id"], text, file.name, len(documents) + 1))
    return documents


def seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def steps(documents: list[Document], benchmarks: Path) -> dict[str, Callable[[], object]]:
    rules, parts = Filter(), list(batches(documents, [len(d.text) for d in documents]))
    pages = Filter(repetition=Repetition(), quality=Quality())
    contamination = Contamination(Decontaminate(benchmarks=[str(benchmarks)]))

    def words() -> list[Words]:
        return [cut_words([d.text for d in part]) for part in parts]

    cut = words()

    def search() -> None:
        for part, found in zip(parts, cut, strict=True):
            contamination.search(found, np.zeros(len(part), np.bool_))

    def hashes() -> None:
        for found in cut:
            signatures(found, 5, 112)
            whole_hashes(found)
            number_hashes(found)

    return {
        "clean and filter": lambda: find_drops([clean(d.text) for d in documents], rules),
        "clean and filter, rules for pages": lambda: find_drops([clean(d.text) for d in documents], pages),
        "words (shared by the next two)": words,
        "MinHash signatures, 112 values": hashes,
        "decontamination search": search,
    }


def datatrove_signatures(documents: list[Document], folder: Path) -> Callable[[], object]:
    """Its signature step with the same numbers: word 5-grams, 14 bands of 8 rows, 64 bits."""
    from datatrove.data import Document as DatatroveDocument
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(
        n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64)
    )
    step = MinhashDedupSignature(output_folder=str(folder), config=config)
    peers = [DatatroveDocument(text=d.text, id=d.id) for d in documents]
    return lambda: step.run(iter(peers), 0, 1)


def index_rates(folder: Path, documents: int) -> tuple[float, float]:
    """CPU seconds to write the index of so many documents: ours, and Megatron-Core's own writer."""
    from megatron.core.datasets.indexed_dataset import _IndexWriter

    lengths = np.random.default_rng(0).integers(1, 1300, documents).astype(np.int32)
    ours = seconds(lambda: write_index(folder / "ours", lengths, np.dtype(np.int32)))
    as_list, ends = lengths.tolist(), list(range(documents + 1))

    def megatron() -> None:
        with _IndexWriter(str(folder / "peer.idx"), np.int32) as writer:
            writer.write(as_list, None, ends)

    theirs = seconds(megatron)
    assert (folder / "ours.idx").read_bytes() == (folder / "peer.idx").read_bytes()
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("benchmarks", type=Path)
    parser.add_argument("--index-documents", type=int, default=10_000_000)
    options = parser.parse_args()
    documents = load(options.corpora)
    megabytes = sum(len(d.text.encode()) for d in documents) / 1e6
    few = list(islice(documents, 0, None, max(1, len(documents) // PEER_DOCUMENTS)))
    few_megabytes = sum(len(d.text.encode()) for d in few) / 1e6
    with tempfile.TemporaryDirectory() as name:
        ours = steps(documents, options.benchmarks)
        runs = dict(ours)
        if importlib.util.find_spec("spacy"):
            runs[PEER] = datatrove_signatures(few, Path(name))
            runs[PEER]()  # loads its word tokenizer
        times: dict[str, list[float]] = {step: [] for step in runs}
        for _ in range(ROUNDS):
            for step, run in runs.items():
                times[step].append(seconds(run))
        sizes = dict.fromkeys(ours, megabytes) | {PEER: few_megabytes}
        rates = {step: sizes[step] / statistics.median(times[step]) for step in runs}
        print(f"{len(documents):,} documents, {megabytes:.1f} MB; {ROUNDS} rounds")
        for step, rate in rates.items():
            print(f"{step:34} {rate:8.1f} MB per CPU second")
        words = megabytes / rates["words (shared by the next two)"]
        for step in ("MinHash signatures, 112 values", "decontamination search"):
            whole = megabytes / (megabytes / rates[step] + words)
            print(f"{step + ', words too':34} {whole:8.1f} MB per CPU second")
        mine, theirs = index_rates(Path(name), options.index_documents)
        print(f".idx of {options.index_documents:,} documents: {mine:.2f} s, Megatron-Core {theirs:.2f} s")


if __name__ == "__main__":
    main()
