"""Linear equations, alone and in words."""

from megatron_mathcpt.data.problems.template import Template, Wording

EQUATIONS = (
    Template(
        name="linear",
        topic="linear equations",
        stage="middle",
        numbers=lambda d: {"a": (a := d.between(2, 9)), "b": (b := d.number()), "c": a * d.factor() + b},
        steps=(
            "rest = c - b",
            "x = rest / a",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "Solve {a}x + {b} = {c}.",
                    "If {a}x + {b} = {c}, what is x?",
                ),
                leads=(
                    "{a}x = ",
                    "x = ",
                ),
            ),
            "zh": Wording(
                questions=(
                    "解方程 {a}x + {b} = {c}。",
                    "已知 {a}x + {b} = {c}，求x。",
                ),
                leads=(
                    "{a}x = ",
                    "x = ",
                ),
            ),
        },
    ),
    Template(
        name="linear_minus",
        topic="linear equations",
        stage="middle",
        numbers=lambda d: {
            "a": (a := d.between(2, 9)),
            "b": (b := d.number()),
            "c": a * (b + d.between(1, 9)) - b,
        },
        steps=(
            "rest = c + b",
            "x = rest / a",
        ),
        wordings={
            "en": Wording(
                questions=("Solve {a}x - {b} = {c}.",),
                leads=(
                    "{a}x = ",
                    "x = ",
                ),
            ),
            "zh": Wording(
                questions=("解方程 {a}x - {b} = {c}。",),
                leads=(
                    "{a}x = ",
                    "x = ",
                ),
            ),
        },
    ),
    Template(
        name="one_step_equation",
        topic="linear equations",
        stage="middle",
        numbers=lambda d: {"b": (b := d.number()), "c": b + d.number()},
        steps=("x = c - b",),
        wordings={
            "en": Wording(questions=("Solve x + {b} = {c}.",), leads=("x = ",)),
            "zh": Wording(questions=("解方程 x + {b} = {c}。",), leads=("x = ",)),
        },
    ),
    Template(
        name="number_riddle",
        topic="linear equations",
        stage="middle",
        numbers=lambda d: {"a": (a := d.between(2, 9)), "b": (b := d.number()), "c": a * d.factor() + b},
        steps=(
            "rest = c - b",
            "number = rest / a",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{name} thinks of a number, multiplies it by {a} and adds {b}. The result "
                    "is {c}. What is the number?",
                ),
                leads=(
                    "Before adding: ",
                    "Number: ",
                ),
            ),
            "zh": Wording(
                questions=("{name}想了一个数，乘{a}再加{b}，结果是{c}，这个数是多少？",),
                leads=(
                    "加之前：",
                    "这个数：",
                ),
            ),
        },
    ),
    Template(
        name="both_sides",
        topic="linear equations",
        stage="high",
        numbers=lambda d: {
            "c": (c := d.between(2, 9)),
            "a": (a := c + d.between(1, 8)),
            "b": (b := d.number()),
            "e": b + (a - c) * d.between(2, 9),
        },
        steps=(
            "left = a - c",
            "right = e - b",
            "x = right / left",
        ),
        wordings={
            "en": Wording(
                questions=("Solve {a}x + {b} = {c}x + {e}.",),
                leads=(
                    "Terms in x: ",
                    "Numbers: ",
                    "x = ",
                ),
            ),
            "zh": Wording(
                questions=("解方程 {a}x + {b} = {c}x + {e}。",),
                leads=(
                    "x的系数：",
                    "常数：",
                    "x = ",
                ),
            ),
        },
    ),
    Template(
        name="sum_and_difference",
        topic="linear equations",
        stage="middle",
        numbers=lambda d: {"b": (b := d.number()), "a": b + 2 * d.number()},
        steps=(
            "double = a + b",
            "larger = double / 2",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "The sum of two numbers is {a} and their difference is {b}. What is the larger number?",
                ),
                leads=(
                    "Twice the larger: ",
                    "Larger: ",
                ),
            ),
            "zh": Wording(
                questions=("两个数的和是{a}，差是{b}，较大的数是多少？",),
                leads=(
                    "较大数的两倍：",
                    "较大数：",
                ),
            ),
        },
    ),
    Template(
        name="heads_and_legs",
        topic="systems of equations",
        stage="middle",
        numbers=lambda d: {
            "a": (rabbits := d.number()) + (chickens := d.number()),
            "b": 4 * rabbits + 2 * chickens,
        },
        steps=(
            "birds = a * 2",
            "extra = b - birds",
            "rabbits = extra / 2",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "Chickens and rabbits in a cage have {a} heads and {b} legs. How many rabbits are there?",
                ),
                leads=(
                    "All chickens: ",
                    "Extra legs: ",
                    "Rabbits: ",
                ),
            ),
            "zh": Wording(
                questions=("鸡兔同笼，共有{a}个头、{b}条腿，兔有多少只？",),
                leads=(
                    "全是鸡：",
                    "多出的腿：",
                    "兔：",
                ),
            ),
        },
    ),
)
