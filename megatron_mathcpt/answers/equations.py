"""Find false equations between numbers in a solution: a right answer may come from wrong arithmetic.

Only what is written with digits, operators, brackets, fractions and roots is judged, exactly, or in the words
for them (48 divided by 2 is 24, 3的2倍是6). A side next to a letter or another unread sign is passed over.
Units and nouns after numbers are left out; units of measure and scales are also tried as factors, and an
equation is false only if no reading is true. Nothing is executed; the time is linear in the text.
"""

import re as short  # patterns in place: regex takes 9 µs to find each in its cache
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import regex as re

from megatron_mathcpt.answers.expression import Node, NotAnExpression, OutOfSteps, parse_expression
from megatron_mathcpt.answers.spellings import NUMBER, RUN, plain, respelled
from megatron_mathcpt.answers.value import Undefined, arithmetic, evaluate

_LONGEST = 120  # characters of a side
_CONTEXT = 60  # characters before and after an equation that are looked at
# Words around an equation that belong to it: 20% of 50 = 10, 5 = 2 times 2 plus 1.
_RELATIONS = "leq?|geq?|lt|gt|equiv|approx|therefore|because|Rightarrow|implies|iff|to"
_BEFORE = re.compile(
    r"(?<![A-Za-z'’])(?:(?-i:[A-Z]{1,4}|[b-z])|times|plus|minus|over|log|ln|sin|cos|tan|mod|choose|than|divided"
    r"|multiplied|(?P<word>of|to|and|per|by))\s*+$"
    rf"|\\(?!(?:{_RELATIONS})(?![A-Za-z]))[A-Za-z]++(?:\s|\\ )*+$"
    r"|(?:分之|千|万|亿|倍|加|减|乘|除|余|根号|[√∛]|(?P<word>[的与和]))\s*+$",
    re.I,
)
# After these, such a word is part of an operation: half of, the sum of 3 and.
_OPERAND = re.compile(
    r"(?:\d[\d./]*+[%}]?|(?<![a-z])(?:half|thirds?|quarters?|fourths?|fifths?|percent|sum|product|difference|average"
    r"|mean|median|square|root|cube|factorial|remainder|digits?|mod\w*+|[a-z])) *+(?:of|的|[与和])\s*+$"
    r"|(?:\d[\d./]*+%?|\b(?:from|between|[a-z])) *+(?:to|by|per)\s*+$"
    r"|\b(?:sum|product|difference|average|mean|between|both|from)\b[^.;]{0,30}and\s*+$",
    re.I,
)
_AFTER = re.compile(
    r"(?:times|plus|minus|over|divided by|multiplied by|choose|of|more than|less than)\b"
    r"(?= ?(?:\d|\(|\\frac))|and \d++ ?⋅|mod\b|分之|倍|加\d|减\d|乘|除|余",
    re.I,
)
# An equation that is not claimed, or one of another arithmetic.
_UNCLAIMED = re.compile(
    r"(?:\b(?:if|suppose|assume|try|whether|not|than|instead of|mistake|error|wrong\w*|false|wait|tempting)\b"
    r"|假设|如果|若|不是|而非|误)"
    r"(?:[,:，：]| that| is| there (?:are|were)| (?:we|to) (?:had|have|say|write|think))?\W{0,3}$"
    r"|\b(?:base|mod|clock)\b|进制|\bwait\b[^.]*$",
    re.I,
)
_DENIED = re.compile(
    r"(?:, ?(?:which|that|but|this) ?)?[^,，.;。；\n=]{0,12}(?:\b(?:is|are|was|be) ?(?:n't|not) (?:right"
    r"|correct|true|possible|equal)|\b(?:false|wrong|incorrect|impossible|contradict\w*|base|mod|clock)\b|[?？]"
    r"|不成立|不对|错误|错了|矛盾|进制|不等|不正确)|\s?[ap]\.?m\b"
    r"|[\s.,;!。，；！]{0,3}(?:wait|no|oops|hmm|actually|不对|等等|错)\b",
    re.I,
)
_REMAINDER = re.compile(
    r"[\s;(]*+(?:[^\s\d=;.()]{1,12}+\)?[\s;,，]*+)?(?:…|\.\.|\\[lc]?dots|\\cdot|R(?![a-z])|r ?\d|余)"
    r"|and (?=[\s(]*\d{1,2} ?/ ?\d{1,2}\b(?! ?[=/]))|[^.\n=]*?(?:remain|\bleft over|leftover|\bround)",
    re.I,
)
_PERCENT = re.compile(rf"({NUMBER}|\.\d+)%")
_PART = re.compile(rf"(?<![\d.])({NUMBER})\s*+([+-])\s*({NUMBER}%)")  # 100 - 20%
_FACTOR = re.compile(rf"({NUMBER})⋅\(([\d/]+)\)")
_FRACTION = re.compile(r"\d+/\d+|\\frac\{\d+\}\{\d+\}")
_OPERATION = re.compile(r"(?<=.)[-+*/^!]|\\")
# One number, or a fraction of a unit.
_LONE = re.compile(r"[-({]*+[\d.]++[)}]*+(?P<unit>(?:/\d++)?(?:⋅\([\d/]++\))++)?+")
_STATED = re.compile(
    r"(?:^|[,.;:!?()\"“”，。；：、|*>]|[一-鿿]|\b(?:since|so|because|as|that|then|have|get|thus|hence|and|also))\s*$"
)
# A sum of two units; the other side has none: 365 / 7 = 52 weeks + 1 day.
_MIXED = re.compile(r".*⋅\(([\d/]+)\)\s?[-+]\s?[\d.]++⋅\((?!\1\))")
_UNREAD = re.compile(
    r"\d{16}|\d\s+\d++(?! ?/ ?\d)|\)\s+\d|[\d)}]\s{2,}\(|⋅\([\d/]+\)\s*[\d(]"
    r"|\[[^()\]]*\]|\^[\d\s]*\^|\^\{?\d{4}"
)


def false_equations(text: str) -> list[str]:
    """The false ones of the equations in `text`, as read. A side may be rounded to the digits that it has."""
    return [equation for _, equation in _false_with_places(text)]


def first_false_step(text: str, spans: Sequence[tuple[int, int]]) -> tuple[int, str] | None:
    """The number, from 0, of the step with the first false equation, and the equation as read.

    `spans` are begin and end of each step in `text`, in order. An equation is in the step of its right side,
    wherever it begins: how a text is cut does not change what is read.
    """
    for place, equation in _false_with_places(text):
        if steps := [number for number, (begin, _) in enumerate(spans) if begin <= place]:
            return steps[-1], equation
    return None


def _false_with_places(text: str) -> list[tuple[int, str]]:
    text, places = respelled(text)
    found = []
    for run in RUN.finditer(text):
        if short.search("[=≈≟]", run[0]):
            before = text[max(0, run.start() - _CONTEXT) : run.start()].rpartition("\n")[2]
            after = text[run.end() : run.end() + _CONTEXT].partition("\n")[0]
            if not _UNCLAIMED.search(before) and not _DENIED.match(after):
                found += [(places[run.start() + at], each) for at, each in _false_in(run[0], before, after)]
    return found


def _false_in(run: str, before: str, after: str) -> list[tuple[int, str]]:
    parts = [*short.finditer(r"(?:^|[=≈≟])([^=≈≟]*+)", run)]
    sides = [part[1].strip() for part in parts]
    whole = short.match(
        r"[^.\n=]{0,20}?\b(?:(?:and|with) (?:an? |\d)|(?:left|full|whole|extra|integer)\b)", after
    )
    divided = short.search(r"/|\\frac", run) and _REMAINDER.match(after)
    if sides[0][:1] == "(" and sides[-1][-1:] == ")" and run.count("(") == run.count(")") == 1:
        sides[0], sides[-1], before, after = sides[0][1:], sides[-1][:-1], "", ""  # all of it is in brackets
    if not before.strip():  # the mark of a list
        sides[0] = short.sub(r"^(?:[-*]\s+|\(?\s*\d{1,2}\s*\)\s+|\d{1,2}\))", "", sides[0])
    sides[0] = short.sub(r"^\)\s*(?=\d)", "", sides[0])
    if short.search(r"\d\s*\($", sides[-1]):  # what is counted, in brackets
        sides[-1], after = sides[-1][:-1].strip(), ""
    values = [_values(side) for side in sides]
    if not _begins(sides[0], before, len(run) - len(run.lstrip())) or not _states(sides[0], sides[1], before):
        values[0] = []
    if whole and plain(sides[-1]).isdigit() and any(abs(a - b) < 1 for a in values[-2] for b in values[-1]):
        values[-1] = []  # perhaps a quotient that is cut to an integer
    if divided or not _ends(sides[-1], after, len(run) - len(run.rstrip())):
        values[-1] = []
    return [
        (part.start(1), plain(f"{left} {'≈' if part[0][0] == '≈' else '='} {right}"))
        for left, right, first, second, part in zip(
            sides, sides[1:], values, values[1:], parts[1:], strict=False
        )
        if first and second and _is_false(left, right, first, second, part[0][0])
    ]


def _states(left: str, right: str, before: str) -> bool:
    """Whether the first side is one of an equation, 57 = 3 * 19, and no thing: 12 eggs = 1 * 12.

    The sign of multiplication may be that of a new operation: 4 * 3 = 2(4) + 3(3).
    """
    operation = _OPERATION.search(plain(right))
    if lone := _LONE.fullmatch(left):
        return bool(operation and _STATED.search(before) and not lone["unit"])
    operands = short.fullmatch(r"\(?(\d+)\)? ?\* ?\(?(\d+)\)?", left)
    return not (operands and operation and set(operands.groups()) <= set(short.findall(r"\d+", right)))


def _is_false(left: str, right: str, first: list[Fraction], second: list[Fraction], sign: str) -> bool:
    if short.fullmatch(r"[\d.]+(?:⋅\(1\))+", left):  # what a part is worth: 5 units = 25
        return False
    if any(_MIXED.match(one) and "⋅" not in other for one, other in ((left, right), (right, left))):
        return False
    left, right = plain(left), plain(right)
    operations = [bool(_OPERATION.search(side)) for side in (left, right)]
    if sign == "≟" and (operations != [True, False] or (_FRACTION.fullmatch(left) and first[0] < 1)):
        return False
    about = sign == "≈" and ("." not in right or operations[1])
    near = 5 if right[-1:] == "0" or operations[1] else 20  # of rounded numbers
    return not any(
        _agrees(one, other, right)
        or _agrees(other, one, left)
        or (about and abs(one - other) <= max(Fraction(1), abs(one) / near))
        for one in first
        for other in second
    )


def _begins(side: str, before: str, spaces: int) -> bool:
    """Whether the first side begins here: before it is prose, the end of a sentence, nothing."""
    if side[:1] in "+*/^)%!]}⋅" or (side[:1] == "-" and before.rstrip()[-1:] not in ("", *",;:.，；：。")):
        return False
    if short.search(r"\d\s*[:：]\s*$", before) or (not spaces and short.search(r"\d[,，]$", before)):
        return False
    if short.search(r"[-+*/]\s+(?:[A-Za-z'’.]+\s+){1,5}$", before):  # 5 apples + all of the 7 pears
        return False
    if word := _BEFORE.search(before):
        if word["word"]:
            return bool(_OPERATION.search(side)) and not _OPERAND.search(before)
        return spaces > 1 and before.rstrip()[-1:].isalpha()
    return spaces > 0 or bool(short.search(r"(?:^|[\s;:!?()\"'”“。，；：、（）*><≤≥]|[一-鿿])$", before))


def _ends(side: str, after: str, spaces: int) -> bool:
    letter = spaces < 2 and short.match(r"[A-Zb-z](?![A-Za-z])", after)
    if letter or short.match("[√∛π⁰¹²³⁴-⁹₀-₉]", after) or side[-1:] in "+-*/^([{⋅" or _AFTER.match(after):
        return False
    if short.match(rf"[.,][\\\d(]|\\(?!\\|(?:text|neq?|{_RELATIONS})(?![A-Za-z]))", after):
        return False  # a repeating decimal, a list
    return not after or spaces > 0 or not short.match(r"[A-Za-z^_|'√:~@]", after)


def _values(side: str) -> list[Fraction]:
    """The values of `side`: without units or with them as factors, 6/1/2 as 12 too, 100 - 20% as 80."""
    if not side or len(side) > _LONGEST or _UNREAD.search(side):
        return []
    if side.isascii() and side.isdigit():
        return [Fraction(int(side))]
    bare = plain(side)
    readings = {bare, bare.rstrip("!")}
    if "⋅" in side:
        readings.add(_FACTOR.sub(r"(\1*\2)", side))
    if "/" in bare:
        readings.add(short.sub(r"/ ?(\d++ ?/ ?\d++$|\d++\\sqrt\{[\d.]++\})", r"/(\1)", bare))
    if "\\frac" in bare:
        readings.add(short.sub(r"(?<=\d)\s+(?=\\frac)", "*", bare))
    if "%" in bare:
        readings.add(_PART.sub(r"\1*(1\2\3)", bare))
    nodes = [node for each in readings if (node := parsed_side(each))]
    return [value for node in nodes if (value := exact_value(node)) is not None]


def parsed_side(side: str) -> Node | None:
    """The tree of a side without units, in the spelling of `respelled`."""
    try:
        decimals = _PERCENT.sub(lambda percent: format(Decimal(percent[1]).scaleb(-2), "f"), side)
        return parse_expression(decimals.replace("*", "\\cdot "))
    except (NotAnExpression, OutOfSteps):
        return None


def exact_value(node: Node) -> Fraction | None:
    """The value of an expression without symbols, an irrational one to 45 digits; None if it is not real."""
    try:
        value = evaluate(node)
    except (OutOfSteps, Undefined):
        return None
    if isinstance(value, Fraction):
        return value
    context = arithmetic()
    if context.isinf(value) or context.im(value):
        return None
    near = Fraction(int(context.re(value) * 2**150), 2**150)
    exact = near.limit_denominator(10**6)
    return exact if abs(exact - near) < Fraction(1, 2**130) else near


def _agrees(exact: Fraction, written: Fraction, side: str) -> bool:
    """Whether `written`, the value of `side`, is `exact`, in percent, or rounded or cut to its decimals."""
    if exact == written:
        return True
    number = short.fullmatch(r"[-({ ]*\d*\.(\d+)(%?)[)} ]*", side)
    unit = Fraction(1, 10 ** (len(number[1]) + 2 * bool(number[2]))) if number else Fraction(0)
    for scale in (1, 100, Fraction(1, 100)) if "%" in side else (1,):
        more = abs(exact * scale) - abs(written)  # as large as the decimals that were cut
        if abs(exact * scale - written) <= abs(written) / 2**120:
            return True
        if unit and exact * written >= 0 and -unit / 2 <= more < unit:
            return True
    return False
