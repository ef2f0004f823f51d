"""Stories of two and more steps."""

from megatron_mathcpt.data.problems.template import Template, Wording

LONG_STORIES = (
    Template(
        name="gain_and_lose",
        topic="addition and subtraction",
        stage="primary",
        numbers=lambda d: {"a": (a := d.number()), "b": (b := d.number()), "c": d.between(2, a + b - 1)},
        steps=("sum = a + b", "left = sum - c"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things}, buys {b} more and gives away {c}. How many {things} are left?",
                    "A shop had {a} {things}. It got {b} more and sold {c}. How many {things} are left?",
                ),
                leads=("In all: ", "Left: "),
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}{unit}{thing}，又买了{b}{unit}，送出{c}{unit}，还剩多少{unit}？",
                    "商店有{a}{unit}{thing}，又运来{b}{unit}，卖出{c}{unit}，还剩多少{unit}？",
                ),
                leads=("一共：", "还剩："),
            ),
        },
    ),
    Template(
        name="boxes_left",
        topic="multiplication and subtraction",
        stage="primary",
        numbers=lambda d: {"a": (a := d.factor()), "b": (b := d.factor()), "c": d.between(1, a * b - 1)},
        steps=("all = a * b", "left = all - c"),
        wordings={
            "en": Wording(
                questions=("{name} has {a} boxes of {b} {things} and uses {c}. How many {things} are left?",),
                leads=("In the boxes: ", "Left: "),
            ),
            "zh": Wording(
                questions=("{name}有{a}盒{thing}，每盒{b}{unit}，用去{c}{unit}，还剩多少{unit}？",),
                leads=("一共：", "还剩："),
            ),
        },
    ),
    Template(
        name="change",
        topic="money",
        stage="primary",
        numbers=lambda d: {
            "a": (a := d.factor()),
            "b": (b := d.factor()),
            "c": a * b + d.between(1, 20),
        },
        steps=("cost = a * b", "change = c - cost"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} buys {a} {things} for {b} dollars each and pays with {c} dollars. "
                    "How many dollars does {name} get back?",
                ),
                leads=("Cost: ", "Back: "),
            ),
            "zh": Wording(
                questions=("{name}买{a}{unit}{thing}，每{unit}{b}元，付了{c}元，应找回多少元？",),
                leads=("应付：", "找回："),
            ),
        },
    ),
    Template(
        name="share_after",
        topic="addition and division",
        stage="primary",
        numbers=lambda d: {
            "c": (c := d.between(2, 6)),
            "a": (a := d.between(1, c * (q := d.factor()) - 1)),
            "b": c * q - a,
        },
        steps=("sum = a + b", "each = sum / c"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things} and {other} has {b}. They put them together and share them "
                    "equally among {c} children. How many {things} does each child get?",
                ),
                leads=("Together: ", "Each: "),
            ),
            "zh": Wording(
                questions=(
                    "{name}有{a}{unit}{thing}，{other}有{b}{unit}，合起来平均分给{c}个孩子，每人多少{unit}？",
                ),
                leads=("合计：", "每人："),
            ),
        },
    ),
    Template(
        name="more_than",
        topic="comparison",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.number()},
        steps=("second = a + b", "total = a + second"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things}. {other} has {b} more than {name}. "
                    "How many {things} do they have together?",
                ),
                leads=("{other}: ", "Together: "),
            ),
            "zh": Wording(
                questions=("{name}有{a}{unit}{thing}，{other}比{name}多{b}{unit}，两人一共有多少{unit}？",),
                leads=("{other}：", "一共："),
            ),
        },
    ),
    Template(
        name="times_as_many",
        topic="comparison",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.between(2, 5)},
        steps=("second = a * b", "total = a + second"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} has {a} {things}. {other} has {b} times as many. "
                    "How many {things} do they have together?",
                ),
                leads=("{other}: ", "Together: "),
            ),
            "zh": Wording(
                questions=("{name}有{a}{unit}{thing}，{other}的数量是{name}的{b}倍，两人一共有多少{unit}？",),
                leads=("{other}：", "一共："),
            ),
        },
    ),
    Template(
        name="pages_in_book",
        topic="multiplication and addition",
        stage="primary",
        numbers=lambda d: {"a": d.factor(), "b": d.between(2, 9), "c": d.number()},
        steps=("read = a * b", "pages = read + c"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} reads {a} pages a day for {b} days and has {c} pages left. "
                    "How many pages are in the book?",
                ),
                leads=("Read: ", "Pages: "),
            ),
            "zh": Wording(
                questions=("{name}每天看{a}页书，看了{b}天，还剩{c}页，这本书共有多少页？",),
                leads=("已看：", "共有："),
            ),
        },
    ),
    Template(
        name="two_kinds",
        topic="money",
        stage="primary",
        numbers=lambda d: {"a": d.between(2, 9), "b": d.factor(), "c": d.between(2, 9), "e": d.factor()},
        steps=("first = a * b", "second = c * e", "total = first + second"),
        wordings={
            "en": Wording(
                questions=(
                    "{name} buys {a} cups for {b} dollars each and {c} plates for {e} dollars each. "
                    "How many dollars does {name} pay?",
                ),
                leads=("Cups: ", "Plates: ", "Total: "),
            ),
            "zh": Wording(
                questions=("{name}买了{a}个杯子，每个{b}元，又买了{c}个盘子，每个{e}元，一共付多少元？",),
                leads=("杯子：", "盘子：", "一共："),
            ),
        },
    ),
    Template(
        name="three_days",
        topic="comparison",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.between(2, 4), "c": d.between(2, 9)},
        steps=("second = a * b", "third = second + c", "two = a + second", "total = two + third"),
        wordings={
            "en": Wording(
                questions=(
                    "On Monday {name} sells {a} {things}, on Tuesday {b} times as many, and on Wednesday "
                    "{c} more than on Tuesday. How many {things} does {name} sell in three days?",
                ),
                leads=("Tuesday: ", "Wednesday: ", "Two days: ", "Three days: "),
            ),
            "zh": Wording(
                questions=(
                    "{name}周一卖出{a}{unit}{thing}，周二卖出的是周一的{b}倍，周三比周二多卖{c}{unit}，"
                    "三天一共卖出多少{unit}？",
                ),
                leads=("周二：", "周三：", "两天：", "三天："),
            ),
        },
    ),
    Template(
        name="class_groups",
        topic="addition and division",
        stage="primary",
        numbers=lambda d: {
            "a": (a := d.between(8, 20)),
            "b": (b := d.between(8, 20)),
            "c": (c := d.between(3, 6)),
            "e": (a + b) % c or c,
        },
        steps=("all = a + b", "present = all - e", "groups = present / c"),
        wordings={
            "en": Wording(
                questions=(
                    "A class has {a} girls and {b} boys. The number of pupils at home is {e}. "
                    "The others form groups of {c}. How many groups are there?",
                ),
                leads=("Class: ", "Present: ", "Groups: "),
            ),
            "zh": Wording(
                questions=(
                    "一个班有{a}名女生和{b}名男生，其中{e}人生病，其余的每{c}人一组，可以分成多少组？",
                ),
                leads=("全班：", "到校：", "组数："),
            ),
        },
    ),
)
