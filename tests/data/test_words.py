"""The vectorised word cutter against a plain one in Python."""

import re
import unicodedata

import numpy as np
import pytest

from megatron_mathcpt.data.words import DIGITS, IDEOGRAPH, LETTERS, SYMBOL, cut_words, ngrams, spans


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
        assert [words.text(i, i + 1) for i in range(low, high)] == plain_words(text)


def test_equal_words_and_only_they_have_equal_hashes() -> None:
    words = cut_words([*TEXTS, " ".join(f"word{i} {i}" for i in range(20_000))])
    texts = [words.text(i, i + 1) for i in range(len(words.hashes))]
    assert len(set(texts)) == len(np.unique(words.hashes))
    assert len({*zip(texts, words.hashes.tolist(), strict=True)}) == len(set(texts))


def test_kinds() -> None:
    words = cut_words(["ab 12 数 +"])
    assert words.kinds.tolist() == [LETTERS, DIGITS, IDEOGRAPH, SYMBOL]


def test_ngrams_stay_inside_a_document_and_do_not_depend_on_place() -> None:
    words = cut_words(["a b c", "z", "", "q a b c"])
    hashes, first = ngrams(words, 3)
    assert first.tolist() == [0, 4, 5]
    assert hashes[0] == hashes[2] != hashes[1]
    assert spans(words, np.array([0]), np.array([2]))[0] == ngrams(cut_words(["a b"]), 2)[0][0]


def test_order_matters() -> None:
    hashes, _ = ngrams(cut_words(["dog bites man", "man bites dog"]), 3)
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("text", ["a\0b", "\ud800 broken", "\ufeff", "\U0001f600 ok \U00020000"])
def test_hostile_text_keeps_document_borders(text: str) -> None:
    words = cut_words([text, "last"])
    assert len(words.documents) == 3
    assert words.text(words.documents[1], words.documents[2]) == "last"


def test_lines_begin_where_line_feeds_end() -> None:
    words = cut_words(["one two\nthree\n\nfour", "five"])
    assert [words.text(i, i + 1) for i in words.lines] == ["one", "three", "four", "five"]
