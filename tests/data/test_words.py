"""The vectorised word cutter against a plain one in Python; MinHash against exact Jaccard similarity."""

import random
import re
import unicodedata

import numpy as np
import pytest

from megatron_mathcpt.data.minhash import EXACT, KEPT, NEAR, band_keys, signatures
from megatron_mathcpt.data.words import DIGITS, IDEOGRAPH, LETTERS, SYMBOL, cut_words
from tests.support.corpus_factory import make_problem, make_sentence
from tests.support.duplicates import duplicates_in_memory


def plain_words(text: str) -> list[str]:
    """The same rule one word at a time, by regular expression."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    text = re.sub(r"(?<=[0-9]),(?=[0-9])", "", text)
    text = re.sub(r"(?<=[a-z])'(?=[a-z])", "", text)
    return re.findall(
        r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[0-9]+|[^\W\d_\u3041-\u30ff\u3400-\u9fff]+|[^\w\s]|_",
        text,
    )


TEXTS = [
    "Janet's 1,000 ducks lay 16 eggs, x+1!",
    "已知函数ｆ(x)=3.14，求 $\\frac{1}{2}$ 的值。",
    "",
    "internationalization of extraordinarily long words",
    "don’t stop   at—dashes\n\nnor at “quotes”",
    "naïve café Ω ≤ ∑ x₁",
    "1,5 and 2,3,4 ,7 '' 'a",
]


def test_words_equal_the_plain_cutter() -> None:
    words = cut_words(TEXTS)
    for number, text in enumerate(TEXTS):
        low, high = words.documents[number : number + 2]
        cut = [words.text(i, i + 1) for i in range(low, high)]
        assert [plain_words(word) for word in cut] == [[word] for word in plain_words(text)]
    assert cut_words(["ab 12 数 +"]).kinds.tolist() == [LETTERS, DIGITS, IDEOGRAPH, SYMBOL]


def test_equal_words_and_only_they_have_equal_hashes() -> None:
    words = cut_words([*TEXTS, " ".join(f"word{i} {i}" for i in range(20_000))])
    texts = [plain_words(words.text(i, i + 1))[0] for i in range(len(words.hashes))]
    assert len(set(texts)) == len(np.unique(words.hashes))
    assert len({*zip(texts, words.hashes.tolist(), strict=True)}) == len(set(texts))


def test_ngrams_stay_inside_a_document_and_do_not_depend_on_place() -> None:
    words = cut_words(["a b c", "z", "", "q a b c"])
    hashes, first = words.ngrams(3)
    assert first.tolist() == [0, 4, 5]
    assert cut_words(["c b a"]).ngrams(3)[0][0] != hashes[0]
    assert hashes[0] == hashes[2] != hashes[1]
    assert words.span_hashes(np.array([0]), np.array([2]))[0] == cut_words(["a b"]).ngrams(2)[0][0]


def splitmix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    return value ^ value >> 31


@pytest.mark.parametrize("text", ["Ab", "Ｉｎternational", "数", "\U00020000", "É"])
def test_hashes_are_of_eight_utf8_bytes_at_a_time(text: str) -> None:
    base, data = 0x9E3779B97F4A7C15, unicodedata.normalize("NFKC", text).lower().encode()
    expected = splitmix((int.from_bytes(data[:8], "little") + base) % (1 << 64))
    for place in range(8, len(data), 8):
        expected = splitmix((expected * base + int.from_bytes(data[place : place + 8], "little")) % (1 << 64))
    assert cut_words([text]).hashes.tolist() == [expected]
    # of three words, a polynomial in the base
    words = cut_words([f"{text} x {text}"])
    middle = int(words.hashes[1])
    polynomial = (expected + middle * base + expected * base**2) % (1 << 64)
    assert words.ngrams(3)[0].tolist() == [splitmix(polynomial)]


def test_hostile_text_keeps_document_borders_and_lines_begin_where_line_feeds_end() -> None:
    hostile = ["a\0b", "\ud800 broken", "\ufeff", "\U0001f600 ok \U00020000"]
    words = cut_words([*hostile, "one two\nthree\n\nfour", "last"])
    assert len(words.documents) == 7
    assert words.text(words.documents[5], words.documents[6]) == "last"
    assert [words.text(i, i + 1) for i in words.lines][-4:] == ["one", "three", "four", "last"]


def verdicts(texts: list[str], numbers: bool = False) -> tuple[list[int], list[int]]:
    words = cut_words(texts)
    rows = signatures(words, 5, 14 * 8)
    salt = (
        words.select(words.kinds == DIGITS).document_hashes() if numbers else np.zeros(len(texts), np.uint64)
    )
    return duplicates_in_memory(words.document_hashes(), salt, band_keys(rows, 14), rows, 0.7)


def test_signatures_estimate_jaccard() -> None:
    random_ = random.Random(1)
    for share in (0.0, 0.02, 0.05, 0.1):
        words = make_sentence(random_, 400).split(" ")
        changed = [f"new{n}" if random_.random() < share else word for n, word in enumerate(words)]
        pair = [" ".join(words), " ".join(changed)]
        rows = signatures(cut_words(pair), 5, 1024)
        grams = [set(cut_words([text]).ngrams(5)[0].tolist()) for text in pair]
        exact = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        # standard deviation of the estimate: sqrt(J (1 - J) / 1024) <= 0.016
        assert abs((rows[0] == rows[1]).mean() - exact) < 0.06


def test_copies_are_dropped_and_the_first_is_kept() -> None:
    random_ = random.Random(2)
    base = [make_sentence(random_, 200) for _ in range(20)]
    near = [text.replace(text.split(" ")[50], "changed") for text in base]
    verdict, first = verdicts([*base, base[3].upper() + "  ", *near])
    assert verdict == [KEPT] * 20 + [EXACT] + [NEAR] * 20
    assert first == [*range(20), 3, *range(20)]
    short, _ = verdicts(["one two", "one two", "one three", "two", "two"])
    assert short == [KEPT, EXACT, KEPT, KEPT, EXACT]


def test_problems_of_one_template_with_other_numbers_are_kept() -> None:
    texts = [f"{p['question']} {p['solution']} So {p['answer']}." for p in map(make_problem, range(300))]
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
    rows = np.repeat(np.array([[1], [2], [3], [3], [4]], np.uint32), 8, axis=1)
    verdict, first = duplicates_in_memory(whole, np.zeros(5, np.uint64), band_keys(rows, 1), rows, 0.7)
    assert first == [0, 1, 1, 1, 0]  # 1-3 equal words, 2-3 equal signatures, so 1, 2 and 3 are one
    assert verdict == [KEPT, KEPT, NEAR, EXACT, EXACT]
