"""Recall of near-duplicate removal by exact Jaccard similarity, and generated problems it takes by mistake.

python tests/benchmarks/near_duplicates.py CORPORA [--planted 3000]

Copies of documents of CORPORA (JSON lines, as in the README) get a random share of their words replaced; the
Jaccard similarity of a pair is counted on its sets of word 5-grams. A pair is found when its copy is dropped.
Beside it the recall that 14 bands of 8 rows have in theory, 1 - (1 - s^8)^14, before signatures are compared.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from megatron_mathcpt.data.minhash import (
    KEPT,
    Signatures,
    band_keys,
    find_duplicates,
    number_hashes,
    signatures,
    whole_hashes,
)
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.data.words import Hashes, batches, cut_words, ngrams
from megatron_mathcpt.records import cpt_text
from tests.benchmarks.data_steps import load

SHINGLE, BANDS, ROWS, THRESHOLD = 5, 14, 8, 0.7
BINS = ((0.9, 1.0), (0.8, 0.9), (0.7, 0.8), (0.6, 0.7), (0.0, 0.6))
GENERATED = 20_000


def hashed(texts: list[str]) -> tuple[Hashes, Hashes, Signatures]:
    """Whole hash, number hash and signature of each text."""
    parts = [cut_words(batch) for batch in batches(texts, [len(text) for text in texts])]
    return (
        np.concatenate([whole_hashes(words) for words in parts]),
        np.concatenate([number_hashes(words) for words in parts]),
        np.concatenate([signatures(words, SHINGLE, BANDS * ROWS) for words in parts]),
    )


def jaccard(one: str, other: str) -> float:
    first, second = (set(ngrams(cut_words([text]), SHINGLE)[0].tolist()) for text in (one, other))
    return len(first & second) / len(first | second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--planted", type=int, default=3000)
    options = parser.parse_args()
    draw = random.Random(0)
    texts = [d.text for d in load(options.corpora) if len(d.text.split()) >= 60]
    originals = draw.sample(range(len(texts)), min(options.planted, len(texts)))
    copies = []
    for number in originals:
        share = draw.uniform(0, 0.08)
        words = texts[number].split(" ")
        copies.append(" ".join(w if draw.random() >= share else f"w{draw.randrange(10**9)}" for w in words))
    whole, _, rows = hashed([*texts, *copies])
    verdict, _ = find_duplicates(
        whole, np.zeros(len(whole), np.uint64), band_keys(rows, BANDS), rows.__getitem__, THRESHOLD
    )
    gone = verdict[len(texts) :] != KEPT
    similarity = np.array(
        [jaccard(texts[number], copy) for number, copy in zip(originals, copies, strict=True)]
    )
    table = Table("Jaccard similarity", "planted", "found", "recall", "bands alone, in theory")
    for low, high in BINS:
        here = (similarity >= low) & ((similarity < high) | (high == 1.0))
        theory = (1 - (1 - similarity[here] ** ROWS) ** BANDS).mean() if here.any() else 0
        found = gone[here].sum()
        table.add_row(
            f"{low} to {high}", str(here.sum()), str(found), f"{gone[here].mean():.3f}", f"{theory:.3f}"
        )
    Console(width=100).print(table)

    problems = [cpt_text(record) for record in training_problems(ProblemMix(train_problems=GENERATED), 5)]
    whole, numbers, rows = hashed(problems)
    verdict, first = find_duplicates(whole, numbers, band_keys(rows, BANDS), rows.__getitem__, THRESHOLD)
    other = sum(numbers[i] != numbers[first[i]] for i in np.flatnonzero(verdict != KEPT))
    print(f"{GENERATED:,} generated problems: {(verdict != KEPT).sum()} dropped, {other} with other numbers")


if __name__ == "__main__":
    main()
