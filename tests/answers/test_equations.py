"""False equations between numbers: what is judged, what is rounded, what is passed over."""

import time

import pytest

from megatron_mathcpt.answers.equations import false_equations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So 2 + 3 = 6 apples.", ["2 + 3 = 6"]),
        ("36 / 3 = 6", ["36 / 3 = 6"]),
        ("He pays <<48/2=25>>25 dollars", ["48/2 = 25"]),
        (r"$3 \times 4 = 13$", ["3 * 4 = 13"]),
        ("10/3 = 3.4", ["10/3 = 3.4"]),
        ("5-2=3=4", ["3 = 4"]),
        ("so 3 x 5 = 16 apples", ["3*5 = 16"]),
        ("共有3+4=8个", ["3+4 = 8"]),
        ("(3+4=8)", ["3+4 = 8"]),
        ("1,000 + 1 = 1,002", ["1000 + 1 = 1002"]),
        (r"\frac{1}{2}+\frac{1}{3}=\frac{2}{5}", [r"\frac{1}{2}+\frac{1}{3} = \frac{2}{5}"]),
        ("100 – 90 = 20 pots", ["100 - 90 = 20"]),
        ("He gets -3 + 5 = 1.", []),  # perhaps the end of another
        ("-3 + 5 = 1, so it is 1", ["-3 + 5 = 1"]),
        ("- 12 * 3 = 35", ["12 * 3 = 35"]),
        ("He has 5 apples + 6 apples = 12 apples.", ["5 + 6 = 12"]),
        (r"\[ \frac{6 \times 5}{2} = 30 \]", [r"\frac{6 * 5}{2} = 30"]),
        (r"\begin{align*} 3 \cdot 5 &= 14 \\ 14+1 &= 15 \end{align*}", ["3 * 5 = 14"]),
        ("Profit: $50 - $35 = $25 (a day)", ["50 -  35 = 25"]),
        ("**12 + 7 = 20**", ["12 + 7 = 20"]),
        ("20% of 50 = 15, 3/4 of 20 = 16", ["20%*50 = 15", "3/4*20 = 16"]),
        ("6 plus 7 equals 12", ["6+7 = 12"]),
        ("一共有25＋36＝51（人），20减去8等于11", ["25+36 = 51", "20-8 = 11"]),
        ("180° - 90° - 35° = 65°", ["180 - 90 - 35 = 65"]),
        ("100 / 3 ≈ 33.9", ["100 / 3 ≈ 33.9"]),
    ],
)
def test_false_equations_are_found(text: str, expected: list[str]) -> None:
    assert false_equations(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2+3=5, so $4 + $5 = $9 and 1,000 + 1 = 1,001.",
        "10/3 = 3.33, 2/3 = 0.67, 2/3 = 0.66",  # rounded, or cut off
        r"1/3 \approx 0.33 and 1/3 = 33.3\%",
        r"\frac{1}{2}+\frac{1}{3}=\frac{5}{6} = 0.8\overline{3}",
        "2^2=4 and 2*(3+4)=14 and 3 - (-2) = 5",
        "x + 2 = 5, 2x = 4, 5! = 120, f(3) = 7, y^2 = 4",  # not numbers alone
        "20% of 50 = 10, 13 = 2 times 6 plus 1, 7/3 = 2 remainder 1",
        r"1 \star 2 = 3 and 1\frac{1}{4} = \frac{5}{4}",
        "20/100=20%, 50% = 0.5",
        "100 - 20% = 80, 10 / 4 = 2.5 ≈ 3, 100/3 ≈ 33",
        "7÷2=3……1, 7÷2=3（组）……1（人）, 7/2 = 3...1",
        r"\log 100 = 2; 1 + 1 = 10 in base 2; $1 = 100 cents",
        "If 2 + 2 = 5, all is true. We try 3 + 4 = 8. 3 : 4 = 6 : 8",
        "3 hours + 30 minutes = 210 minutes, (1) 3 + 4 = 7 (2) 5 + 6 = 11",
        "1/0 = 5, 2 3 = 6, 9^9999 = 1",
    ],
)
def test_true_and_unread_equations_are_passed_over(text: str) -> None:
    assert false_equations(text) == []


def test_hostile_texts_take_linear_time() -> None:
    for text in ("(" * 10**5, "1=2" * 30_000, "1+" * 50_000, "\\frac{1}{" * 20_000, "= " * 50_000):
        start = time.process_time()
        false_equations(text)
        assert time.process_time() - start < 5
