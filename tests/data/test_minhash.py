"""MinHash against exact Jaccard similarity, and what counts as a duplicate."""

import random

import numpy as np

from megatron_mathcpt.data.minhash import (
    EXACT,
    KEPT,
    NEAR,
    band_keys,
    find_duplicates,
    number_hashes,
    signatures,
    whole_hashes,
)
from megatron_mathcpt.data.words import cut_words, ngrams
from tests.data.made import problem, sentence


def changed(text: str, share: float, random_: random.Random) -> str:
    return " ".join(
        w if random_.random() > share else f"new{random_.randint(0, 10**9)}" for w in text.split(" ")
    )


def verdicts(texts: list[str], numbers: bool = False) -> tuple[list[int], list[int]]:
    words = cut_words(texts)
    rows = signatures(words, 5, 14 * 8)
    salt = number_hashes(words) if numbers else np.zeros(len(texts), np.uint64)
    verdict, first = find_duplicates(whole_hashes(words), salt, band_keys(rows, 14), rows.__getitem__, 0.7)
    return verdict.tolist(), first.tolist()


def test_signatures_estimate_jaccard() -> None:
    random_ = random.Random(1)
    for share in (0.0, 0.02, 0.05, 0.1):
        text = sentence(random_, 400)
        pair = [text, changed(text, share, random_)]
        rows = signatures(cut_words(pair), 5, 1024)
        grams = [set(ngrams(cut_words([text]), 5)[0].tolist()) for text in pair]
        exact = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        # standard deviation of the estimate: sqrt(J (1 - J) / 1024) <= 0.016
        assert abs((rows[0] == rows[1]).mean() - exact) < 0.06


def test_copies_go_and_the_first_stays() -> None:
    random_ = random.Random(2)
    base = [sentence(random_, 200) for _ in range(20)]
    near = [text.replace(text.split(" ")[50], "changed") for text in base]
    verdict, first = verdicts([*base, base[3].upper() + "  ", *near])
    assert verdict == [KEPT] * 20 + [EXACT] + [NEAR] * 20
    assert first == [*range(20), 3, *range(20)]


def test_short_and_empty_documents() -> None:
    verdict, _ = verdicts(["one two", "one two", "one three", "two", "two"])
    assert verdict == [KEPT, EXACT, KEPT, KEPT, EXACT]


def test_problems_of_one_template_with_other_numbers_stay() -> None:
    texts = [
        f"{p['question']} {p['solution']} The answer is {p['answer']}." for p in map(problem, range(300))
    ]
    long = " ".join(f"sentence number one about shop and street {i}" for i in "abcdefghij")
    templated = [f"{long} Tom has {i} apples." for i in range(100)]
    assert set(verdicts(texts, numbers=True)[0]) == {KEPT}
    assert set(verdicts(templated, numbers=True)[0]) == {KEPT}
    # without the rule on numbers nearly all are near duplicates, so the rule is what keeps them
    assert verdicts(templated)[0].count(NEAR) > 90
    same = [f"{long} Tom has 5 apples.", f"{long} Tim has 5 apples."]
    assert verdicts(same, numbers=True)[0] == [KEPT, NEAR]


def test_chains_join_to_their_first_document() -> None:
    whole = np.array([5, 6, 7, 6, 5], np.uint64)
    rows = np.zeros((5, 8), np.uint32)
    rows[:] = np.array([1, 2, 3, 3, 4])[:, None]
    verdict, first = find_duplicates(whole, np.zeros(5, np.uint64), band_keys(rows, 1), rows.__getitem__, 0.7)
    assert first.tolist() == [0, 1, 1, 1, 0]  # 1-3 equal words, 2-3 equal signatures, so 1, 2 and 3 are one
    assert verdict.tolist() == [KEPT, KEPT, NEAR, EXACT, EXACT]
