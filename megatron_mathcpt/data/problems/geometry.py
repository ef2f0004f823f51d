"""Lengths, areas, volumes and angles."""

from megatron_mathcpt.data.problems.template import Template, Wording

GEOMETRY = (
    Template(
        name="rectangle_area",
        topic="geometry",
        stage="primary",
        numbers=lambda d: {"a": d.factor(), "b": d.factor()},
        steps=("area = a * b",),
        wordings={
            "en": Wording(
                questions=("A rectangle is {a} cm long and {b} cm wide. What is its area in square cm?",)
            ),
            "zh": Wording(questions=("长方形长{a}厘米，宽{b}厘米，面积是多少平方厘米？",)),
        },
    ),
    Template(
        name="rectangle_perimeter",
        topic="geometry",
        stage="primary",
        numbers=lambda d: {"a": d.number(), "b": d.number()},
        steps=(
            "half = a + b",
            "perimeter = half * 2",
        ),
        wordings={
            "en": Wording(
                questions=("A rectangle is {a} cm long and {b} cm wide. What is its perimeter in cm?",),
                leads=(
                    "Half: ",
                    "Perimeter: ",
                ),
            ),
            "zh": Wording(
                questions=("长方形长{a}厘米，宽{b}厘米，周长是多少厘米？",),
                leads=(
                    "一半：",
                    "周长：",
                ),
            ),
        },
    ),
    Template(
        name="rectangle_side",
        topic="geometry",
        stage="middle",
        numbers=lambda d: {"b": (b := d.number()), "a": 2 * (b + d.number())},
        steps=(
            "half = a / 2",
            "side = half - b",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "The perimeter of a rectangle is {a} cm and one side is {b} cm. How long is "
                    "the other side in cm?",
                ),
                leads=(
                    "Half: ",
                    "Side: ",
                ),
            ),
            "zh": Wording(
                questions=("长方形周长{a}厘米，一边长{b}厘米，另一边长多少厘米？",),
                leads=(
                    "一半：",
                    "另一边：",
                ),
            ),
        },
    ),
    Template(
        name="square_perimeter",
        topic="geometry",
        stage="primary",
        numbers=lambda d: {"a": d.number()},
        steps=("perimeter = 4 * a",),
        wordings={
            "en": Wording(questions=("The side of a square is {a} cm. What is its perimeter in cm?",)),
            "zh": Wording(questions=("正方形边长{a}厘米，周长是多少厘米？",)),
        },
    ),
    Template(
        name="triangle_area",
        topic="geometry",
        stage="middle",
        numbers=lambda d: {"a": 2 * d.factor(), "b": d.factor()},
        steps=(
            "double = a * b",
            "area = double / 2",
        ),
        wordings={
            "en": Wording(
                questions=("A triangle has base {a} cm and height {b} cm. What is its area in square cm?",),
                leads=(
                    "Base times height: ",
                    "Area: ",
                ),
            ),
            "zh": Wording(
                questions=("三角形底{a}厘米，高{b}厘米，面积是多少平方厘米？",),
                leads=(
                    "底乘高：",
                    "面积：",
                ),
            ),
        },
    ),
    Template(
        name="box_volume",
        topic="geometry",
        stage="primary",
        numbers=lambda d: {"a": d.between(2, 9), "b": d.between(2, 9), "c": d.factor()},
        steps=(
            "base = a * b",
            "volume = base * c",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume in cubic cm?",
                ),
                leads=(
                    "Base: ",
                    "Volume: ",
                ),
            ),
            "zh": Wording(
                questions=("长方体长{a}厘米，宽{b}厘米，高{c}厘米，体积是多少立方厘米？",),
                leads=(
                    "底面积：",
                    "体积：",
                ),
            ),
        },
    ),
    Template(
        name="third_angle",
        topic="geometry",
        stage="middle",
        numbers=lambda d: {"a": d.between(2, 8) * 10, "b": d.between(2, 8) * 10},
        steps=(
            "two = a + b",
            "angle = 180 - two",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "Two angles of a triangle are {a} and {b} degrees. How many degrees is the third angle?",
                ),
                leads=(
                    "Two angles: ",
                    "Third: ",
                ),
            ),
            "zh": Wording(
                questions=("三角形的两个角是{a}度和{b}度，第三个角是多少度？",),
                leads=(
                    "两角和：",
                    "第三个角：",
                ),
            ),
        },
    ),
    Template(
        name="hypotenuse",
        topic="geometry",
        stage="middle",
        numbers=lambda d: {
            "a": (k := d.between(1, 9)) * ((m := d.between(2, 4)) ** 2 - (n := d.between(1, m - 1)) ** 2),
            "b": 2 * k * m * n,
        },
        steps=(
            "first = a ** 2",
            "second = b ** 2",
            "sum = first + second",
            "side = sqrt(sum)",
        ),
        wordings={
            "en": Wording(
                questions=(
                    "The legs of a right triangle are {a} cm and {b} cm. How long is the hypotenuse in cm?",
                ),
                leads=(
                    "First square: ",
                    "Second square: ",
                    "Sum: ",
                    "Side: ",
                ),
            ),
            "zh": Wording(
                questions=("直角三角形的两条直角边长{a}厘米和{b}厘米，斜边长多少厘米？",),
                leads=(
                    "第一个平方：",
                    "第二个平方：",
                    "和：",
                    "斜边：",
                ),
            ),
        },
    ),
)
