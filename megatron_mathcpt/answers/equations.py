"""Find false equations between numbers in a model's output: a right answer may come from wrong arithmetic.

Only what is written with digits, operators and brackets is judged, exactly, as fractions. A side next to a
letter, a root or another unread sign is passed over. Nothing is executed; the time is linear in the output.
"""

from fractions import Fraction

import regex as re

from megatron_mathcpt.answers.expression import NotAnExpression, OutOfSteps, parse_expression
from megatron_mathcpt.answers.value import Undefined, evaluate

_LONGEST = 120  # characters of a side
_MOST_DIGITS = 15
_SPELLINGS = (
    (r"\\\\|\\(?:begin|end)\{[^{}]{1,20}\}", "\n"),
    (r"\\[dt]?frac\s*+\{([^{}]{1,40})\}\s*+\{([^{}]{1,40})\}", r"((\1)/(\2))"),
    (r",?\\!", ""),
    (r"\^\s*+\{?\\circ\}?|°", ""),
    (r"\^\{(\d{1,3})\}", r"^\1"),
    (r"\*\*|\\(?:left|right|[,!;$()\[\]])|[$¥￥€£&]", " "),
    (r"\\times|\\cdot|×|·|(?<=[\d)]) ?[xX] ?(?=[\d(])", "*"),
    (r"(?<=\d)(?: times | multiplied by |乘以?)(?=\d)|(?:(?<=%)|(?<=\d/\d)|(?<=\d/\d\d)) of (?=\d)", "*"),
    (r"\\div|÷|(?<=\d)(?: divided by |除以)(?=\d)", "/"),
    (r"[−–－]|(?<=\d)(?: minus |减去?)(?=\d)", "-"),
    (r"＋|(?<=\d)(?: plus |加)(?=\d)", "+"),
    (r"＝|(?<=\d)(?: equals | is equal to |等于)(?=\d)", "="),
    (r"\\%", "%"),
    (r"\\approx", "≈"),
    (r"<<|>>", ";"),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
)
_RUN = re.compile(r"(?:[\d+\-*/^()%=≈ \t]|\.(?=\d))++")
# 5 apples + 6 apples = 11 apples
_OF_ONE_UNIT = re.compile(
    r"(?<![\w.])[\d.]++ (?P<unit>[a-z]{3,15}?)s?+(?: [-+] [\d.]++ (?P=unit)s?+){1,9}+ = [\d.]++ (?P=unit)s?\b"
)
# Words around an equation that belong to it: 20% of 50 = 10, 13 = 2 times 6 plus 1, 7 = 2 remainder 1.
_PART = re.compile(
    r"(?:[A-Za-z]|of|times|plus|minus|over|per|log|ln|sin|cos|tan|mod|choose|to|hundred|thousand|million|billion"
    r"|dozen|percent|cents?|remainder|and|余|分之|的|千|万|亿|倍|加|减|乘|除|\\.*)",
    re.IGNORECASE,
)
# An equation that is not claimed, or one of another arithmetic.
_UNCLAIMED = re.compile(
    r"\b(?:if|suppose|assume|try|base|mod|clock|false|contradict|wrong)|假设|如果|若|进制", re.I
)
_REMAINDER = re.compile(r"(?:[（(][^）)]{1,5}[）)])?\s*+(?:…|\.\.)")
_WORD_BEFORE, _WORD_AFTER = re.compile(r"(?:\\?[A-Za-z]+|[一-鿿])$"), re.compile(r"[A-Za-z]+|[一-鿿]+")


def false_equations(text: str) -> list[str]:
    """The false ones of the equations in `text`, as read. A side may be rounded to the digits that it has."""
    found = []
    for pattern, sign in _SPELLINGS:
        text = re.sub(pattern, sign, text)
    text = _OF_ONE_UNIT.sub(lambda found: re.sub(" [a-z]+", "", found[0]), text)
    for run in _RUN.finditer(text):
        if "=" in run[0] or "≈" in run[0]:
            before, after = text[max(0, run.start() - 20) : run.start()], text[run.end() : run.end() + 20]
            before, after = before.rpartition("\n")[2], after.partition("\n")[0]
            if not _UNCLAIMED.search(before + " " + after):
                found += _false_in(run[0], before, after)
    return found


def _false_in(run: str, before: str, after: str) -> list[str]:
    if run.strip()[:1] == "(" and run.strip()[-1:] == ")" and run.count("(") == run.count(")") == 1:
        run, before, after = run.strip()[1:-1], "", ""  # the equation is in brackets
    if not before.strip():  # the mark of a list
        run = re.sub(r"^\s*(?:[-*]\s+|\d{1,2}\)\s*)", "", run)
    if re.search(r"\d\s*\($", run):  # what is counted, in brackets
        run, after = run.rstrip()[:-1], ""
    sides = [side.strip() for side in re.split(r"[=≈]", run)]
    values, signs = [_value(side) for side in sides], re.findall("[=≈]", run)
    negative = sides[0][:1] == "-" and before.rstrip()[-1:] in ("", *",;:.，；：。")
    if sides[0] and (
        (sides[0][0] in "+-*/^)%" and not negative) or not _is_apart(before, run[:1] == " ", _WORD_BEFORE)
    ):
        values[0] = None
    if sides[-1] and (
        sides[-1][-1] in "+-*/^("
        or _REMAINDER.match(after)
        or not _is_apart(after, run[-1:] == " ", _WORD_AFTER)
    ):
        values[-1] = None
    found, read = [], [*zip(sides, values, strict=True)]
    for sign, (left, first), (right, second) in zip(signs, read[:-1], read[1:], strict=True):
        if first is None or second is None or _agrees(first, second, right) or _agrees(second, first, left):
            continue
        if sign == "≈" and "." not in right and abs(first - second) <= max(Fraction(1), abs(first) / 20):
            continue
        found.append(f"{left} = {right}")
    return found


def _is_apart(text: str, spaced: bool, word: re.Pattern[str]) -> bool:
    """Whether the text next to an equation is no part of it: prose, a mark of its end, nothing."""
    if found := word.search(text) if word is _WORD_BEFORE else word.match(text):
        return (spaced or found[0][0] > "z") and not _PART.fullmatch(found[0])
    if re.match(r"[.,][\\\d(]", text):  # a repeating decimal, a list
        return False
    if word is _WORD_BEFORE and text[-1:] in (":", "：") and spaced:
        return not re.search(r"\d\s*[:：]$", text)
    return not text or (text[-1] if word is _WORD_BEFORE else text[0]) not in "\\^_{}!|'√<>≤≥:/[]~@"


def _value(side: str) -> Fraction | None:
    if (
        not side
        or len(side) > _LONGEST
        or re.search(
            rf"\d{{{_MOST_DIGITS + 1}}}|\d\s+\d|\)\s+\d|\d\s*\(\(|\^[\d\s]*\^|\^\d{{3}}|\d\s*[+-]\s*[\d.]+%",
            side,
        )
    ):
        return None
    try:
        text = re.sub(r"(\d+(?:\.\d+)?|\.\d+)%", r"(\1/100)", side).replace("*", "\\cdot ")
        value = evaluate(parse_expression(text))
    except (NotAnExpression, OutOfSteps, Undefined):
        return None
    return value if isinstance(value, Fraction) else None


def _agrees(exact: Fraction, written: Fraction, side: str) -> bool:
    """Whether `written`, the value of `side`, is `exact`, in percent, or rounded or cut to its decimals."""
    number = re.fullmatch(r"[-(]*\d*\.(\d+)(%?)\)*", side)
    unit = Fraction(1, 10 ** (len(number[1]) + 2 * bool(number[2]))) if number else Fraction(0)
    for scale in (1, 100, Fraction(1, 100)) if "%" in side else (1,):
        more = abs(exact * scale) - abs(written)  # as large as the decimals that were cut
        if exact * scale == written or (exact * written >= 0 and -unit / 2 <= more < unit and unit):
            return True
    return False
