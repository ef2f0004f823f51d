"""False equations between numbers: what is judged, what is rounded, what is passed over."""

import time

import pytest

from megatron_mathcpt.answers.equations import false_equations, first_false_step


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
        ("48 divided by 2 is 25", ["48/2 = 25"]),
        ("which is 12 × 3 = 35 dollars", ["12 * 3 = 35"]),
        ("5+6=12个", ["5+6 = 12"]),
        ("The sum of 3 and 4 is 8; half of 10 is 6; 3的2倍是7", ["3+4 = 8", "1/2*10 = 6", "3*2 = 7"]),
        (
            r"\sqrt{16} = 5, 5! = 100 and \binom{5}{2} = 11",
            [r"\sqrt{16} = 5", "5! = 100", r"\binom{5}{2} = 11"],
        ),
        (r"\begin{aligned} x &= 3 + 4 \\ &= 8 \end{aligned}", ["3 + 4 = 8"]),
        (r"$$\begin{align*} 12 \cdot 5 &= 60 \\ &= 61. \end{align*}$$", ["60 = 61"]),
        ("3 hours × 60 minutes = 190 minutes", ["3 * 60 = 190"]),
        ("10 floors * 10 rooms/floor = 101 rooms", ["10 * 10 = 101"]),
        ("2 red hats + 3 hats = 6 hats are sold", ["2 + 3 = 6"]),
        ("a total of 14 + 8 = 23 meters of fence", ["14 + 8 = 23"]),
        (r"there are $200/4=\boxed{51}$ squares", ["200/4 = 51"]),
        (r"1\frac{1}{2} + 1 = 3\frac{1}{2}", [r"1\frac{1}{2} + 1 = 3\frac{1}{2}"]),
        ("366÷7=53（周）……2（天）", ["366 = 7*53+2"]),
        (r"$3+4=7$  $7+5=13$ and $-3+5=1$", ["7+5 = 13", "-3+5 = 1"]),
        ("100% - 40% = 61% of the students", ["100% - 40% = 61%"]),
        (r"${{2}^{10}}=1025$, $7 \cdot 2$ is $15,$ and so on", ["{{2}^{10}} = 1025", "7 * 2 = 15"]),
        ("甲有25－10＝16人，如果再来5人", ["25-10 = 16"]),
        ("5² = 20 and 2 × 10³ = 200", ["5^{2} = 20", "2 * 10^{3} = 200"]),
        ("5 + 3 = 8 units = 8 × 2 = 18; 50 / 12 = 5.5 with 1 left", ["8 * 2 = 18", "50 / 12 = 5.5"]),
        (
            "19 × 6 ≈ 200; 60 / 12 = 6 full boxes; 3米+20厘米=32厘米",
            ["19 * 6 ≈ 200", "60 / 12 = 6", "3+20 = 32"],
        ),
        (
            "24的一半是14, 3 (apples) + 4 (pears) = 8, `12 + 3 = 16`",
            ["24/2 = 14", "3 + 4 = 8", "12 + 3 = 16"],
        ),
        ("½ + ¼ = ⅔", [r"\frac{1}{2} + \frac{1}{4} = \frac{2}{3}"]),
        ("√12 + √27 = 4√3; 20% of $80 = $18", [r"\sqrt{12} + \sqrt{27} = 4\sqrt{3}", "20%*80 = 18"]),
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
        "Wait, 2 + 3 = 6 is wrong. 2 + 4 = 7? No. 2 + 5 = 8, wait, that is 7.",
        "2 feet + 6 inches = 30 inches, 3米+20厘米=320厘米, 2 dozen = 24, 5 quarters * 25 cents = $1.25",
        "11 am + 3 hours = 2 pm",
        "12 eggs = 1 * 12 eggs = 1 dozen, since 4/7 is equal to $24, a cup = 8 ounces",
        r"x_1^2 = 144, C_{5}^{2} = 10, \left[\frac{7}{2}\right] = 3",
        r"\begin{pmatrix} 1 \\ 0 \end{pmatrix} = 5 \begin{pmatrix} 3 \\ 7 \end{pmatrix}",
        "252÷(4+3+2+1)=25······2, the last two digits of 16 * 8 is 28",
        r"$2 ◆ 3 = 2 \times 3 + 3 = 9$ and $4 * 3 = 2(4)+3(3) = 17$",
        "25 / 1/3 = 75, 2 1/2 + 1 = 3.5, 16 + 12 = $28 million",
        "the average of 3 and 4 + 5 = 6, 100 / 6 = 16 and 2/3, he was 5 in 2019 and 3 is 2 less than 5",
        "3+4=7!, (28,365)=1, 2 + 3 = 5 < 6",
        "9 + 16 = 25 = 5², 36 × 10 = 2³ × 3² × 5, 20 + 5 = (2 + 3)², 0.07 = 7 × 10⁻², 1 + ³√8 = 3",
        "8 + 2 = 1010₂, 2 × 3 = 6π, 10 ÷ 4 = 2½, ½ of 10 + 2 = 7",
        "12/√3 = 4√3, √2 × √8 = 4, √12 + √27 = 2√3 + 3√3 = 5√3, √50 = 5√2 ≈ 7.07, 6/2√3 = √3, √ (9 + 16) = 5",
        "1小时20分=80分, 2米5厘米=205厘米, 3元5角=3.5元, 4吨50千克=4050千克, 17÷4=4（盒），余1个",
        "100 / 7 = 14 weeks and 2 days, 75 / 60 = 1 hour and 15 minutes, 365 / 7 = 52 weeks + 1 day",
        "50 / 12 = 4 full boxes, 17 ÷ 4 = 4 with 1 left, 3 quarters + 2 dimes = 95 cents",
        "8 units - 3 units = 5 units = 25; 3 + 5 = 8 parts = 40; 19 × 6 ≈ 120; 19 × 6 ≈ 20 × 6",
        "Suppose there were 5 + 6 = 12. A common mistake is 2 + 3 × 4 = 20. It's tempting to write 1 + 1 = 3",
        "2 × 500 = 1000 cm³ = 1 dm³ = 1 liter, 3 × 3 = 9 square feet = 1 square yard",
        "100×100=10000平方厘米=1平方米",
    ],
)
def test_true_and_unread_equations_are_passed_over(text: str) -> None:
    assert false_equations(text) == []


def test_the_first_false_step_is_found_however_the_text_is_cut() -> None:
    text = "First 2 + 3 = 5.\nThen 5 + 4\n= 10.\nSo 10 + 1 = 12."
    begins = [0, 17, 28, 35]
    spans = [*zip(begins, [*begins[1:], len(text)], strict=True)]
    assert first_false_step(text, spans) == (2, "5 + 4 = 10")  # its result is there
    assert first_false_step(text, [(0, 17), (17, len(text))]) == (1, "5 + 4 = 10")
    assert first_false_step(text, [(0, len(text))]) == (0, "5 + 4 = 10")
    assert first_false_step("2 + 3 = 5", [(0, 9)]) is None
    words = "It costs 3 hours × 60 minutes = 190 minutes.\nSo 48 divided by 2 is 25."
    assert first_false_step(words, [(0, 45), (45, len(words))]) == (0, "3 * 60 = 190")
    assert first_false_step(words.replace("190", "180"), [(0, 45), (45, len(words))]) == (1, "48/2 = 25")


def test_hostile_texts_take_linear_time() -> None:
    for text in (
        "(" * 10**5,
        "1=2" * 30_000,
        "1+" * 50_000,
        "\\frac{1}{" * 20_000,
        "= " * 50_000,
        "1 " * 50_000 + "=",
        "1 a" * 30_000,
        "²" * 10**5,
        "½√2" * 30_000,
    ):
        start = time.process_time()
        false_equations(text)
        assert time.process_time() - start < 5
