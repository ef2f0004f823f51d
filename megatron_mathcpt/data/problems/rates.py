"""Speed, work, averages and unit prices."""

from megatron_mathcpt.data.problems.template import Template, Wording

RATES = (
    Template(
        name="distance",
        topic="rates",
        stage="middle",
        numbers=lambda d: {"a": d.factor() * d.one_of(1, 10), "b": d.factor()},
        steps=("way = a * b",),
        wordings={
            "en": Wording(
                questions=(
                    "A car drives {a} km per hour for {b} hours. How many km does it drive?",
                    "{name} rides {a} km an hour. How far does {name} get in {b} hours, in km?",
                )
            ),
            "zh": Wording(
                questions=(
                    "汽车每小时行{a}千米，{b}小时行多少千米？",
                    "{name}每小时骑{a}千米，{b}小时骑多少千米？",
                )
            ),
        },
    ),
    Template(
        name="speed",
        topic="rates",
        stage="middle",
        numbers=lambda d: {"b": (b := d.factor()), "a": b * d.factor()},
        steps=("speed = a / b",),
        wordings={
            "en": Wording(questions=("A train goes {a} km in {b} hours. How many km does it go per hour?",)),
            "zh": Wording(questions=("火车{b}小时行{a}千米，平均每小时行多少千米？",)),
        },
    ),
    Template(
        name="travel_time",
        topic="rates",
        stage="middle",
        numbers=lambda d: {"b": (b := d.factor()), "a": b * d.factor()},
        steps=("time = a / b",),
        wordings={
            "en": Wording(
                questions=(
                    "A road is {a} km long. {name} walks {b} km per hour. How many hours does {name} need?",
                )
            ),
            "zh": Wording(questions=("一条路长{a}千米，{name}每小时走{b}千米，要走多少小时？",)),
        },
    ),
    Template(
        name="meeting",
        topic="rates",
        stage="middle",
        numbers=lambda d: {"a": d.factor(), "b": d.factor(), "c": d.between(2, 9)},
        steps=(
            "both = a + b",
            "way = both * c",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{name} and {other} walk towards each other at {a} and {b} km per hour and "
                    "meet after {c} hours. How many km were they apart?",
                ),
                leads=(
                    "Each hour: ",
                    "Apart: ",
                ),
            ),
            "zh": Wording(
                questions=(
                    "{name}和{other}从两地相向而行，每小时分别走{a}千米和{b}千米，{c}小时后相遇，两地相距多少千米？",
                ),
                leads=(
                    "速度和：",
                    "相距：",
                ),
            ),
        },
    ),
    Template(
        name="catching_up",
        topic="rates",
        stage="middle",
        numbers=lambda d: {
            "b": (b := d.factor()),
            "a": b + (gain := d.between(1, 8)),
            "e": gain * d.between(2, 9),
        },
        steps=(
            "gain = a - b",
            "time = e / gain",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "{name} runs {a} m per second and {other} {b} m per second. {other} is {e} "
                    "m ahead. After how many seconds does {name} catch up?",
                ),
                leads=(
                    "Gain: ",
                    "Time: ",
                ),
            ),
            "zh": Wording(
                questions=(
                    "{name}每秒跑{a}米，{other}每秒跑{b}米，{other}在前面{e}米处，多少秒后{name}追上？",
                ),
                leads=(
                    "速度差：",
                    "时间：",
                ),
            ),
        },
    ),
    Template(
        name="machines",
        topic="rates",
        stage="middle",
        numbers=lambda d: {"a": d.between(2, 9), "b": d.factor(), "c": d.between(2, 9)},
        steps=(
            "hourly = a * b",
            "made = hourly * c",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "One machine makes {b} parts an hour. How many parts do {a} machines make in {c} hours?",
                ),
                leads=(
                    "Per hour: ",
                    "In all: ",
                ),
            ),
            "zh": Wording(
                questions=("一台机器每小时做{b}个零件，{a}台机器{c}小时做多少个零件？",),
                leads=(
                    "每小时：",
                    "一共：",
                ),
            ),
        },
    ),
    Template(
        name="unit_price",
        topic="rates",
        stage="middle",
        numbers=lambda d: {"a": (a := d.between(2, 9)), "c": a * d.factor(), "b": d.between(2, 9)},
        steps=(
            "each = c / a",
            "cost = each * b",
        ),
        wordings={
            "en": Wording(
                questions=("{a} {things} cost {c} dollars. How many dollars do {b} {things} cost?",),
                leads=(
                    "Each: ",
                    "Cost: ",
                ),
            ),
            "zh": Wording(
                questions=("{a}{unit}{thing}要{c}元，{b}{unit}{thing}要多少元？",),
                leads=(
                    "单价：",
                    "总价：",
                ),
            ),
        },
    ),
    Template(
        name="average",
        topic="statistics",
        stage="middle",
        numbers=lambda d: {
            "a": (a := d.number()),
            "b": (b := d.number()),
            "c": 3 * d.between((a + b) // 3 + 1, (a + b) // 3 + 9) - a - b,
        },
        steps=(
            "sum = a + b + c",
            "average = sum / 3",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "What is the average of {a}, {b} and {c}?",
                    "{name} scores {a}, {b} and {c} points. What is the average score?",
                ),
                leads=(
                    "Sum: ",
                    "Average: ",
                ),
            ),
            "zh": Wording(
                questions=(
                    "{a}、{b}、{c}的平均数是多少？",
                    "{name}三次得分是{a}、{b}、{c}，平均得多少分？",
                ),
                leads=(
                    "总和：",
                    "平均：",
                ),
            ),
        },
    ),
    Template(
        name="filling",
        topic="rates",
        stage="middle",
        numbers=lambda d: {
            "b": (b := d.between(2, 9)),
            "a": b + d.between(2, 9),
            "c": d.between(2, 9),
            "e": d.number(),
        },
        steps=(
            "net = a - b",
            "added = net * c",
            "full = e + added",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "A tank holds {e} litres. Each minute {a} litres flow in and {b} litres "
                    "flow out. How many litres are in it after {c} minutes?",
                ),
                leads=(
                    "Per minute: ",
                    "Added: ",
                    "Then: ",
                ),
            ),
            "zh": Wording(
                questions=("水箱里有{e}升水，每分钟流进{a}升，流出{b}升，{c}分钟后有多少升水？",),
                leads=(
                    "每分钟：",
                    "增加：",
                    "现在：",
                ),
            ),
        },
    ),
)
