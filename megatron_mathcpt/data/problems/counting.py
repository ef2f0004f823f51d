"""Counting and simple probability."""

from megatron_mathcpt.data.problems.template import Template, Wording

COUNTING = (
    Template(
        name="draw_one",
        topic="probability",
        stage="high",
        numbers=lambda d: {"a": d.between(1, 9), "b": d.between(1, 9)},
        steps=(
            "all = a + b",
            "chance = a / all",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "A bag holds {a} red and {b} blue balls. One is drawn. What is the "
                    "probability that it is red?",
                ),
                leads=(
                    "Balls: ",
                    "Probability: ",
                ),
            ),
            "zh": Wording(
                questions=("袋中有{a}个红球和{b}个蓝球，任取一个，取到红球的概率是多少？",),
                leads=(
                    "总数：",
                    "概率：",
                ),
            ),
        },
    ),
    Template(
        name="not_drawn",
        topic="probability",
        stage="high",
        numbers=lambda d: {"b": (b := d.between(3, 12)), "a": d.between(1, b - 1)},
        steps=(
            "others = b - a",
            "chance = others / b",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{a} of {b} tickets win. {name} draws one. What is the probability that it does not win?",
                ),
                leads=(
                    "Others: ",
                    "Probability: ",
                ),
            ),
            "zh": Wording(
                questions=("{b}张奖券中有{a}张中奖，{name}抽一张，不中奖的概率是多少？",),
                leads=(
                    "不中奖：",
                    "概率：",
                ),
            ),
        },
    ),
    Template(
        name="draw_two",
        topic="probability",
        stage="high",
        numbers=lambda d: {"a": d.between(2, 6), "b": d.between(2, 6)},
        steps=(
            "all = a + b",
            "first = a / all",
            "rest = all - 1",
            "second = (a - 1) / rest",
            "chance = first * second",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "A bag holds {a} red and {b} blue balls. Two are drawn without putting "
                    "back. What is the probability that both are red?",
                ),
                leads=(
                    "Balls: ",
                    "First: ",
                    "Rest: ",
                    "Second: ",
                    "Both: ",
                ),
            ),
            "zh": Wording(
                questions=("袋中有{a}个红球和{b}个蓝球，不放回地取两个，都是红球的概率是多少？",),
                leads=(
                    "总数：",
                    "第一次：",
                    "剩下：",
                    "第二次：",
                    "都是红球：",
                ),
            ),
        },
    ),
    Template(
        name="outfits",
        topic="counting",
        stage="primary",
        numbers=lambda d: {"a": d.between(2, 9), "b": d.between(2, 9)},
        steps=("ways = a * b",),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} shirts and {b} hats. How many ways are there to wear one of each?",
                )
            ),
            "zh": Wording(questions=("{name}有{a}件上衣和{b}顶帽子，各选一件，有多少种搭配？",)),
        },
    ),
    Template(
        name="handshakes",
        topic="counting",
        stage="high",
        numbers=lambda d: {"n": d.between(3, 20)},
        steps=(
            "others = n - 1",
            "twice = n * others",
            "shakes = twice / 2",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{n} people meet and each shakes hands with each other once. How many "
                    "handshakes are there?",
                ),
                leads=(
                    "Others: ",
                    "Counted twice: ",
                    "Handshakes: ",
                ),
            ),
            "zh": Wording(
                questions=("{n}个人见面，每两人握手一次，一共握手多少次？",),
                leads=(
                    "其他人：",
                    "重复计数：",
                    "握手：",
                ),
            ),
        },
    ),
    Template(
        name="committee",
        topic="counting",
        stage="high",
        numbers=lambda d: {"n": d.between(3, 12)},
        steps=(
            "second = n - 1",
            "ways = n * second",
        ),
        wordings={
            "en": Wording(
                questions=("A club of {n} people chooses a chair and a secretary. How many ways are there?",),
                leads=(
                    "For the second: ",
                    "Ways: ",
                ),
            ),
            "zh": Wording(
                questions=("{n}人中选一名班长和一名副班长，有多少种选法？",),
                leads=(
                    "第二人：",
                    "选法：",
                ),
            ),
        },
    ),
)
