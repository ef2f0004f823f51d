"""One-step stories of adding, taking away, multiplying and dividing, and the bare calculations."""

from megatron_mathcpt.data.problems.template import Template, Wording

STORIES = (
    Template(
        name="gain",
        weight=3.0,
        topic="addition",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.number()},
        steps=("total = a + b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
                    "{name} had {a} {things}. {other} gave {name} {b} more {things}. "
                    "How many {things} does {name} have?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}{unit}{thing}，又得到{b}{unit}，现在一共有多少{unit}{thing}？",
                    "{name}原有{a}{unit}{thing}，{other}又送来{b}{unit}，{name}现在有多少{unit}{thing}？",
                )
            ),
        },
    ),
    Template(
        name="together",
        weight=3.0,
        topic="addition",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.number()},
        steps=("total = a + b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things} and {other} has {b} {things}. "
                    "How many {things} do they have together?",
                    "There are {a} {things} on the table and {b} {things} in the box. "
                    "How many {things} are there in all?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}{unit}{thing}，{other}有{b}{unit}{thing}，他们一共有多少{unit}{thing}？",
                    "桌上有{a}{unit}{thing}，盒里有{b}{unit}{thing}，一共有多少{unit}{thing}？",
                )
            ),
        },
    ),
    Template(
        name="lose",
        weight=3.0,
        topic="subtraction",
        stage="primary",
        numbers=lambda d: {"b": (b := d.number()), "a": b + d.number()},
        steps=("left = a - b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things} and gives {b} to {other}. How many {things} are left?",
                    "There are {a} {things} in a box. {name} takes {b} out. How many {things} are left?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}{unit}{thing}，给了{other}{b}{unit}，还剩多少{unit}{thing}？",
                    "盒里有{a}{unit}{thing}，{name}拿走{b}{unit}，还剩多少{unit}{thing}？",
                )
            ),
        },
    ),
    Template(
        name="difference",
        weight=3.0,
        topic="subtraction",
        stage="primary",
        numbers=lambda d: {"b": (b := d.number()), "a": b + d.number()},
        steps=("more = a - b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things} and {other} has {b} {things}. "
                    "How many more {things} does {name} have?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}{unit}{thing}，{other}有{b}{unit}{thing}，"
                    "{name}比{other}多多少{unit}{thing}？",
                )
            ),
        },
    ),
    Template(
        name="missing_part",
        weight=3.0,
        topic="subtraction",
        stage="primary",
        numbers=lambda d: {"b": (b := d.number()), "a": b + d.number()},
        steps=("before = a - b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} buys {b} {things} and now has {a} {things}. How many did {name} have before?",
                )
            ),
            "zh": Wording(questions=("{name}买了{b}{unit}{thing}后有{a}{unit}，原来有多少{unit}{thing}？",)),
        },
    ),
    Template(
        name="age_later",
        weight=3.0,
        topic="addition",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.between(2, 9)},
        steps=("age = a + b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} is {a} years old. {other} is {b} years older. How old is {other}?",
                    "{name} is {a} years old. How old will {name} be in {b} years?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}今年{a}岁，{other}比{name}大{b}岁，{other}今年多少岁？",
                    "{name}今年{a}岁，{b}年后{name}多少岁？",
                )
            ),
        },
    ),
    Template(
        name="boxes",
        weight=3.0,
        topic="multiplication",
        stage="primary",
        numbers=lambda d: {"a": d.factor(), "b": d.factor()},
        steps=("total = a * b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} boxes with {b} {things} in each. How many {things} does {name} have?",
                    "There are {a} bags. Each bag holds {b} {things}. How many {things} are there?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}盒{thing}，每盒{b}{unit}，一共有多少{unit}{thing}？",
                    "有{a}个袋子，每袋装{b}{unit}{thing}，一共有多少{unit}{thing}？",
                )
            ),
        },
    ),
    Template(
        name="cost",
        weight=3.0,
        topic="multiplication",
        stage="primary",
        numbers=lambda d: {"a": d.factor(), "b": d.factor()},
        steps=("cost = a * b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} buys {a} {things} for {b} dollars each. How many dollars does {name} pay?",
                    "One {thing} costs {b} dollars. How many dollars do {a} {things} cost?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{name}买{a}{unit}{thing}，每{unit}{b}元，一共要付多少元？",
                    "一{unit}{thing}{b}元，{a}{unit}{thing}多少元？",
                )
            ),
        },
    ),
    Template(
        name="share",
        weight=3.0,
        topic="division",
        stage="primary",
        numbers=lambda d: {"b": (b := d.factor()), "a": b * d.factor()},
        steps=("each = a / b",),
        wordings={
            "en": Wording(
                questions=(
                    "{b} friends share {a} {things} equally. How many {things} does each friend get?",
                    "{name} puts {a} {things} into {b} equal piles. How many {things} are in each pile?",
                )
            ),
            "zh": Wording(
                questions=(
                    "{b}个朋友平分{a}{unit}{thing}，每人分到多少{unit}？",
                    "{name}把{a}{unit}{thing}平均分成{b}堆，每堆多少{unit}？",
                )
            ),
        },
    ),
    Template(
        name="packs",
        weight=3.0,
        topic="division",
        stage="primary",
        numbers=lambda d: {"b": (b := d.factor()), "a": b * d.factor()},
        steps=("bags = a / b",),
        wordings={
            "en": Wording(
                questions=("{name} packs {a} {things}, {b} in each bag. How many bags does {name} need?",)
            ),
            "zh": Wording(questions=("{name}有{a}{unit}{thing}，每袋装{b}{unit}，要装多少袋？",)),
        },
    ),
    Template(
        name="calculate_sum",
        weight=3.0,
        topic="addition",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.number()},
        steps=("total = a + b",),
        wordings={
            "en": Wording(questions=("What is {a} + {b}?", "Add {b} to {a}.")),
            "zh": Wording(questions=("{a} + {b} 等于多少？", "{a}加{b}等于几？")),
        },
    ),
    Template(
        name="calculate_difference",
        weight=3.0,
        topic="subtraction",
        stage="primary",
        numbers=lambda d: {"b": (b := d.number()), "a": b + d.number()},
        steps=("left = a - b",),
        wordings={
            "en": Wording(questions=("What is {a} - {b}?", "Take {b} from {a}.")),
            "zh": Wording(questions=("{a} - {b} 等于多少？", "{a}减{b}等于几？")),
        },
    ),
    Template(
        name="calculate_product",
        weight=3.0,
        topic="multiplication",
        stage="primary",
        numbers=lambda d: {"a": d.factor(), "b": d.factor()},
        steps=("product = a * b",),
        wordings={
            "en": Wording(questions=("What is {a} * {b}?", "Multiply {a} by {b}.")),
            "zh": Wording(questions=("{a} * {b} 等于多少？", "{a}乘{b}等于几？")),
        },
    ),
    Template(
        name="calculate_quotient",
        weight=3.0,
        topic="division",
        stage="primary",
        numbers=lambda d: {"b": (b := d.factor()), "a": b * d.factor()},
        steps=("quotient = a / b",),
        wordings={
            "en": Wording(questions=("What is {a} / {b}?", "Divide {a} by {b}.")),
            "zh": Wording(questions=("{a} / {b} 等于多少？", "{a}除以{b}等于几？")),
        },
    ),
)
