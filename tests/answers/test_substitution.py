"""Answers put into the equations of their question; what is no such question is not graded."""

import time

import pytest

from megatron_mathcpt.answers.substitution import satisfies


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Solve 2x + 3 = 11 for x.", "4", "correct"),
        ("Solve 2x + 3 = 11 for x.", "x = 5", "wrong"),
        ("解方程：2x+3=11", "x=4", "correct"),
        ("解方程 3(x-1)=9", "x=5", "wrong"),
        ("解方程组 $x+y=5$，$x-y=1$", "x=3, y=2", "correct"),
        ("Solve the system $x + y = 5$ and $x - y = 1$.", "(3, 2)", "correct"),
        ("Solve the system $x + y = 5$ and $x - y = 1$.", "x = 2, y = 3", "wrong"),
        (r"Solve \[\begin{cases} x+y=5 \\ x-y=1 \end{cases}\]", "(3, 2)", "correct"),
        ("Solve $x^2-5x+6=0$", "x = 2 or x = 3", "correct"),
        ("Solve $x^2-5x+6=0$", "2, 4", "wrong"),
        ("Solve $x^2-5x+6=0$", "2", "ungraded"),  # not all
        ("若 $2x+3=11$，则 $x$ 的值是多少？", "4", "correct"),
        (r"Solve \[\frac{2x + 3}{x - 4} - \frac{2x - 8}{2x + 1} = 1.\]", r"\frac{25}{31}", "correct"),
        ("If $2x+3=11$, find the value of $2x$.", "8", "ungraded"),
        ("If $2x+3=11$, find the value of $x + 1$.", "5", "ungraded"),
        ("How many solutions does $x^2=4$ have?", "2", "ungraded"),
        ("Solve $x < 3$", "2", "ungraded"),
        ("Solve $ax = 3$ for $x$", "1", "ungraded"),
        ("Solve for $x$: $x^2 = 4$, where $x > 0$", "2", "ungraded"),
        ("If $f(x) = 2x$, find $x$.", "3", "ungraded"),
        ("Find the roots of $x^2 = 2$", "1.41", "ungraded"),  # perhaps rounded
        ("Tom has 3 apples and x + 2 = 5 pears. How many has he?", "8", "ungraded"),
        ("Solve $2x = 6$", "none", "ungraded"),
    ],
)
def test_satisfies(question: str, answer: str, expected: str) -> None:
    assert satisfies(question, answer) == expected


def test_hostile_questions_are_bounded() -> None:
    for text in (
        "Solve " + "x=" * 900,
        "Solve $" + "(" * 1500 + "$",
        "Solve $x^{9^{9^9}} = 1$",
        "solve " * 300,
    ):
        start = time.process_time()
        satisfies(text, "3")
        assert time.process_time() - start < 2
