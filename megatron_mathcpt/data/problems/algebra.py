"""Sequences, functions, quadratics and slopes."""

from megatron_mathcpt.data.problems.template import Template, Wording

ALGEBRA = (
    Template(
        name="next_term",
        topic="sequences",
        stage="middle",
        numbers=lambda d: {"a": (a := d.number()), "b": a + (gap := d.between(2, 9)), "c": a + 2 * gap},
        steps=(
            "gap = c - b",
            "next = c + gap",
        ),
        wordings={
            "en": Wording(
                questions=("What comes next: {a}, {b}, {c}?",),
                leads=(
                    "Gap: ",
                    "Next: ",
                ),
            ),
            "zh": Wording(
                questions=("找规律：{a}、{b}、{c}，下一个数是多少？",),
                leads=(
                    "公差：",
                    "下一个：",
                ),
            ),
        },
    ),
    Template(
        name="arithmetic_term",
        topic="sequences",
        stage="high",
        numbers=lambda d: {"a": d.number(), "b": d.between(2, 9), "n": d.between(4, 12)},
        steps=(
            "gaps = n - 1",
            "added = gaps * b",
            "term = a + added",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "An arithmetic sequence starts with {a} and has common difference {b}. What "
                    "is term number {n}?",
                ),
                leads=(
                    "Gaps: ",
                    "Added: ",
                    "Term: ",
                ),
            ),
            "zh": Wording(
                questions=("等差数列首项为{a}，公差为{b}，第{n}项是多少？",),
                leads=(
                    "项数减一：",
                    "增加：",
                    "这一项：",
                ),
            ),
        },
    ),
    Template(
        name="arithmetic_sum",
        topic="sequences",
        stage="high",
        numbers=lambda d: {"a": (a := d.between(1, 9)), "b": a + 2 * d.between(2, 9), "n": d.between(3, 10)},
        steps=(
            "ends = a + b",
            "double = ends * n",
            "sum = double / 2",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "An arithmetic sequence of {n} terms starts with {a} and ends with {b}. "
                    "What is the sum of the terms?",
                ),
                leads=(
                    "Ends: ",
                    "Twice the sum: ",
                    "Sum: ",
                ),
            ),
            "zh": Wording(
                questions=("等差数列共{n}项，首项{a}，末项{b}，各项之和是多少？",),
                leads=(
                    "首末之和：",
                    "和的两倍：",
                    "和：",
                ),
            ),
        },
    ),
    Template(
        name="geometric_term",
        topic="sequences",
        stage="high",
        numbers=lambda d: {"a": d.between(2, 9), "q": d.between(2, 4), "n": d.between(3, 5)},
        steps=(
            "gaps = n - 1",
            "power = q ** gaps",
            "term = a * power",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "A geometric sequence starts with {a} and has common ratio {q}. What is term number {n}?",
                ),
                leads=(
                    "Steps: ",
                    "Power: ",
                    "Term: ",
                ),
            ),
            "zh": Wording(
                questions=("等比数列首项为{a}，公比为{q}，第{n}项是多少？",),
                leads=(
                    "次数：",
                    "乘方：",
                    "这一项：",
                ),
            ),
        },
    ),
    Template(
        name="quadratic_root",
        topic="quadratics",
        stage="high",
        numbers=lambda d: {"b": (low := d.between(1, 8)) + (high := low + d.between(1, 9)), "c": low * high},
        steps=(
            "square = b ** 2",
            "four = 4 * c",
            "inside = square - four",
            "root = sqrt(inside)",
            "sum = b + root",
            "x = sum / 2",
        ),
        wordings={
            "en": Wording(
                questions=("What is the larger solution of x^2 - {b}x + {c} = 0?",),
                leads=(
                    "Square: ",
                    "Four times: ",
                    "Inside: ",
                    "Root: ",
                    "Sum: ",
                    "x = ",
                ),
            ),
            "zh": Wording(
                questions=("方程 x^2 - {b}x + {c} = 0 的较大解是多少？",),
                leads=(
                    "平方：",
                    "四倍：",
                    "判别式：",
                    "开方：",
                    "和：",
                    "x = ",
                ),
            ),
        },
    ),
    Template(
        name="quadratic_vertex",
        topic="quadratics",
        stage="high",
        numbers=lambda d: {"b": 2 * d.number(), "c": d.between(1, 9)},
        steps=("x = b / 2",),
        wordings={
            "en": Wording(questions=("For which x is x^2 - {b}x + {c} smallest?",)),
            "zh": Wording(questions=("x为多少时，x^2 - {b}x + {c} 最小？",)),
        },
    ),
    Template(
        name="function_value",
        topic="functions",
        stage="high",
        numbers=lambda d: {"a": d.between(2, 9), "b": d.number(), "k": d.between(2, 9)},
        steps=(
            "first = a * k",
            "value = first + b",
        ),
        wordings={
            "en": Wording(questions=("If f(x) = {a}x + {b}, what is f({k})?",)),
            "zh": Wording(questions=("已知 f(x) = {a}x + {b}，求 f({k})。",)),
        },
    ),
    Template(
        name="square_value",
        topic="functions",
        stage="high",
        numbers=lambda d: {"a": d.between(2, 5), "b": d.between(1, 9), "k": d.between(2, 6)},
        steps=(
            "square = k ** 2",
            "first = a * square",
            "value = first + b",
        ),
        wordings={
            "en": Wording(questions=("If f(x) = {a}x^2 + {b}, what is f({k})?",)),
            "zh": Wording(questions=("已知 f(x) = {a}x^2 + {b}，求 f({k})。",)),
        },
    ),
    Template(
        name="slope",
        topic="functions",
        stage="high",
        numbers=lambda d: {
            "a": (a := d.between(1, 9)),
            "c": a + (run := d.between(1, 6)),
            "b": (b := d.between(1, 9)),
            "e": b + run * d.between(1, 6),
        },
        steps=(
            "rise = e - b",
            "run = c - a",
            "slope = rise / run",
        ),
        wordings={
            "en": Wording(
                questions=("What is the slope of the line through ({a}, {b}) and ({c}, {e})?",),
                leads=(
                    "Rise: ",
                    "Run: ",
                    "Slope: ",
                ),
            ),
            "zh": Wording(
                questions=("过点({a}, {b})和({c}, {e})的直线的斜率是多少？",),
                leads=(
                    "纵差：",
                    "横差：",
                    "斜率：",
                ),
            ),
        },
    ),
    Template(
        name="derivative",
        topic="functions",
        stage="high",
        numbers=lambda d: {"a": d.between(2, 9), "k": d.between(2, 9)},
        steps=(
            "double = 2 * a",
            "value = double * k",
        ),
        wordings={
            "en": Wording(
                questions=("If f(x) = {a}x^2, what is the derivative of f at x = {k}?",),
                leads=(
                    "Factor: ",
                    "Value: ",
                ),
            ),
            "zh": Wording(
                questions=("已知 f(x) = {a}x^2，求 f 在 x = {k} 处的导数。",),
                leads=(
                    "系数：",
                    "导数：",
                ),
            ),
        },
    ),
)
