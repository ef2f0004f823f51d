"""Operations of a solution: the same computation in other words, another way, another order."""

import time
from fractions import Fraction

import pytest

from megatron_mathcpt.answers.operations import operation_similarity, operations


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("48/2 = 24 and 48 + 24 = 72", "Half of 48 is 24. 24 + 48 = 72 clips in all.", 1.0),
        ("48 divided by 2 is 24, so 48 plus 24 is 72", r"$\frac{48}{2} = 24$, $48 + 24 = 72$", 1.0),
        ("3 + 4 = 7, 7 + 5 = 12", "5 + 4 = 9, 9 + 3 = 12", 1.0),
        ("3 + 4 = 7, 7 * 5 = 35", "(4 + 3) × 5 = 35", 1.0),
        ("20% of 50 = 10", "0.2 * 50 = 10", 1.0),
        ("3 apples + 4 apples = 7 apples", "一共3+4=7个", 1.0),
        ("2^3 = 8", "3^2 = 9", 0.0),
        ("12 * 5 = 60", "10 * 5 = 50, 2 * 5 = 10, 50 + 10 = 60", 0.0),
        ("By factoring, x = 2.", "By completing the square, x = 2.", 0.0),
        ("用勾股定理，3^2 + 4^2 = 25", "By Pythagoras, 3^2 + 4^2 = 25", 1.0),
        ("3 + 4 = 7", "No numbers here.", None),
    ],
)
def test_similarity(first: str, second: str, expected: float | None) -> None:
    assert operation_similarity(first, second) == expected


def test_operations_of_a_text() -> None:
    assert operations("10 - 4 = 6; 6 / 3 = 2. We use the quadratic formula.") == {
        ("sum", (Fraction(-4), Fraction(10))),
        ("product", (Fraction(1, 3), Fraction(6))),
        ("quadratic formula", ()),
    }
    assert operations("A factor of 12 is 4.") == frozenset()


def test_hostile_texts_take_linear_time() -> None:
    for text in ("(" * 10**5 + "=", "1+1=2;" * 20_000, "1+" * 50_000 + "=1", "let " * 30_000):
        start = time.process_time()
        operations(text)
        assert time.process_time() - start < 8
