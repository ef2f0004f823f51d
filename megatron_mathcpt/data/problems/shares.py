"""Fractions, percentages, ratios and interest."""

from megatron_mathcpt.data.problems.template import Template, Wording

SHARES = (
    Template(
        name="fraction_of",
        topic="fractions",
        stage="primary",
        numbers=lambda d: {"b": (b := d.between(2, 9)), "a": d.between(1, b - 1), "c": b * d.factor()},
        steps=(
            "one = c / b",
            "part = one * a",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {c} {things} and gives away {a}/{b} of them. How many {things} "
                    "does {name} give away?",
                ),
                leads=(
                    "One part: ",
                    "Parts: ",
                ),
            ),
            "zh": Wording(
                questions=("{name}有{c}{unit}{thing}，送出其中的{a}/{b}，送出多少{unit}？",),
                leads=(
                    "一份：",
                    "送出：",
                ),
            ),
        },
    ),
    Template(
        name="fraction_left",
        topic="fractions",
        stage="middle",
        numbers=lambda d: {"b": (b := d.between(2, 9)), "c": b * d.factor()},
        steps=(
            "part = c / b",
            "left = c - part",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "There are {c} {things}. {name} takes 1/{b} of them. How many {things} are left?",
                ),
                leads=(
                    "Taken: ",
                    "Left: ",
                ),
            ),
            "zh": Wording(
                questions=("有{c}{unit}{thing}，{name}拿走1/{b}，还剩多少{unit}？",),
                leads=(
                    "拿走：",
                    "还剩：",
                ),
            ),
        },
    ),
    Template(
        name="fraction_sum",
        topic="fractions",
        stage="primary",
        numbers=lambda d: {
            "c": (c := d.between(3, 12)),
            "a": (a := d.between(1, c - 2)),
            "b": d.between(1, c - a - 1),
        },
        steps=("sum = a / c + b / c",),
        wordings={
            "en": Wording(
                questions=(
                    "What is {a}/{c} + {b}/{c}?",
                    "{name} eats {a}/{c} of a cake and {other} eats {b}/{c} of it. Which "
                    "fraction of the cake do they eat?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{a}/{c} + {b}/{c} 等于多少？",
                    "{name}吃了蛋糕的{a}/{c}，{other}吃了{b}/{c}，一共吃了蛋糕的几分之几？",
                )
            ),
        },
    ),
    Template(
        name="fraction_product",
        topic="fractions",
        stage="middle",
        numbers=lambda d: {
            "a": (a := d.between(1, 8)),
            "b": d.between(a + 1, 9),
            "c": (c := d.between(1, 8)),
            "e": d.between(c + 1, 9),
        },
        steps=(
            "top = a * c",
            "bottom = b * e",
            "product = top / bottom",
        ),
        wordings={
            "en": Wording(
                questions=("What is {a}/{b} times {c}/{e}?",),
                leads=(
                    "Top: ",
                    "Bottom: ",
                    "Product: ",
                ),
            ),
            "zh": Wording(
                questions=("{a}/{b}乘{c}/{e}等于多少？",),
                leads=(
                    "分子：",
                    "分母：",
                    "积：",
                ),
            ),
        },
    ),
    Template(
        name="percent_of",
        topic="percent",
        stage="middle",
        numbers=lambda d: {"a": d.between(1, 9) * 10, "b": d.between(1, 20) * 10},
        steps=(
            "times = a * b",
            "part = times / 100",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "What is {a}% of {b}?",
                    "A school has {b} pupils. {a}% of them walk to school. How many pupils walk?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{b}的{a}%是多少？",
                    "学校有{b}名学生，其中{a}%步行上学，步行的有多少人？",
                )
            ),
        },
    ),
    Template(
        name="discount",
        topic="percent",
        stage="middle",
        numbers=lambda d: {"a": d.between(1, 9) * 10, "b": d.between(1, 20) * 10},
        steps=(
            "times = a * b",
            "off = times / 100",
            "price = b - off",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "A coat costs {b} dollars. The price falls by {a}%. How many dollars does it cost now?",
                ),
                leads=(
                    "Product: ",
                    "Off: ",
                    "Price: ",
                ),
            ),
            "zh": Wording(
                questions=("一件外套{b}元，降价{a}%，现价多少元？",),
                leads=(
                    "乘积：",
                    "降价：",
                    "现价：",
                ),
            ),
        },
    ),
    Template(
        name="percent_is",
        topic="percent",
        stage="middle",
        numbers=lambda d: {"b": (b := d.one_of(4, 5, 10, 20, 25, 50)), "a": d.between(1, b - 1)},
        steps=(
            "times = a * 100",
            "percent = times / b",
        ),
        wordings={
            "en": Wording(questions=("{a} of {b} {things} are red. How many percent are red?",)),
            "zh": Wording(questions=("{b}{unit}{thing}中有{a}{unit}是红的，红的占百分之几？",)),
        },
    ),
    Template(
        name="interest",
        topic="percent",
        stage="high",
        numbers=lambda d: {"a": d.between(1, 9), "b": d.between(1, 9) * 100, "c": d.between(2, 9)},
        steps=(
            "yearly = a * b / 100",
            "interest = yearly * c",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{name} saves {b} dollars at {a}% simple interest a year. How many dollars "
                    "of interest are there after {c} years?",
                ),
                leads=(
                    "Each year: ",
                    "Interest: ",
                ),
            ),
            "zh": Wording(
                questions=("{name}存{b}元，年利率{a}%，按单利计算，{c}年的利息是多少元？",),
                leads=(
                    "每年：",
                    "利息：",
                ),
            ),
        },
    ),
    Template(
        name="ratio_split",
        topic="ratio",
        stage="middle",
        numbers=lambda d: {
            "b": (b := d.between(1, 6)),
            "a": (a := b + d.between(1, 6)),
            "c": (a + b) * d.factor(),
        },
        steps=(
            "parts = a + b",
            "one = c / parts",
            "larger = one * a",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{name} and {other} share {c} dollars in the ratio {a} to {b}. How many "
                    "dollars does {name} get?",
                ),
                leads=(
                    "Parts: ",
                    "One part: ",
                    "Share: ",
                ),
            ),
            "zh": Wording(
                questions=("{name}和{other}按{a}比{b}分{c}元，{name}分到多少元？",),
                leads=(
                    "份数：",
                    "一份：",
                    "分到：",
                ),
            ),
        },
    ),
)
