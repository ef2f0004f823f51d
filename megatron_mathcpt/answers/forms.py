"""Ways to write an answer that are reduced to others before the rules by kind: to two texts, or to a verdict.

Each takes the normalised answers and gives None if it has nothing to say of them.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from megatron_mathcpt.answers import region
from megatron_mathcpt.answers.expression import Node, parse_expression
from megatron_mathcpt.answers.normalize import words_as_symbols
from megatron_mathcpt.answers.numerals import written
from megatron_mathcpt.answers.units import split_unit
from megatron_mathcpt.answers.value import as_number, evaluate, real

Reduced = tuple[str, str] | bool | None
_THOUSAND = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "bn": 10**9, "B": 10**9}
_ABOUT = re.compile(
    r"\s*[,(]?\s*(?:\\approx|约(?:等于|为)?|(?<![a-z])(?:or )?(?:about|approximately)(?![a-z]))\s*"
)
_LABEL = re.compile(
    r"(?P<name>[A-Za-z一-鿿\s']{0,24}?(?:[一-鿿][A-Z]?'?|[a-z]{3,}(?: [a-z]+){0,5}))"
    r"(?:\s*[为是=:]\s*|\s+(?:is|are|equals)\s+)(?P<value>(?:[-+\d\\(\[{|√A-Za-z]|空集|全体|一切|任意"
    r"|所有).*)"
)
_MODULUS = re.compile(r"(?:(.*?)\\equiv)?(.*?)\\pmod\{\s*(\d+)\s*\}")
_DETERMINANT = re.compile(
    r"\\begin\{vmatrix\}(.*?)\\end\{vmatrix\}|(?:\\?det\s*\(?\s*\\begin\{[pb]?matrix\}|\|\s*\\begin\{(?:array"
    r"|matrix)\}(?:\{[lcr|]+\})?)(.*?)\\end\{\w*\}\s*[|)]?",
    re.DOTALL,
)


def abbreviated(text: str, other: str) -> str:
    """Write 15k in digits if the other answer is a number, so that k is no symbol."""
    found = re.fullmatch(r"((?:dollar )?)(-?[\d,]*\d(?:\.\d+)?)(k|K|M|B|mn|bn)((?: dollars?)?)", text)
    if not found or not re.fullmatch(r"(?:dollar )?-?[\d,.]+(?: dollars?)?", other):
        return text
    return f"{found[1]}{written(Fraction(found[2].replace(',', '')) * _THOUSAND[found[3]])}{found[4]}"


def named(text: str) -> str:
    """Write (x, y) = (1, 2) as x = 1, y = 2."""
    if not (found := re.fullmatch(r"\(([A-Za-z](?:\s*,\s*[A-Za-z])+)\)\s*=\s*\((.+)\)", text)):
        return text
    names, values = found[1].split(","), region.split_top(found[2], ",")
    if len(names) != len(values):
        return text
    return ",".join(f"{name.strip()}={value}" for name, value in zip(names, values, strict=True))


def statements(gold: str, prediction: str) -> Reduced:
    """Compare sets of numbered statements, (1)(3) or ①③: labels, no product and no digits."""
    sets = [_label_set(text) for text in (gold, prediction)]
    if not any(sets):
        return None
    for index, text in enumerate((gold, prediction)):
        if sets[index] is None and re.fullmatch(r"(?:\(\d{1,2}\)|\d{1,2}(?:\s*[,;和与]\s*\d{1,2})+)", text):
            sets[index] = frozenset(map(int, re.findall(r"\d+", text)))
    return sets[0] == sets[1]


def _label_set(text: str) -> frozenset[int] | None:
    text = re.sub(r"^正确的?[^\\]{0,6}[是为]|(?:正确|成立|是真命题)$", "", text).strip()
    label = r"(?:\\label\{\d+\}|\(\d{1,2}\))[\s,;和与]*"
    if re.fullmatch(rf"(?:{label}){{2,}}", text) or re.fullmatch(r"\\label\{\d+\}", text):
        return frozenset(map(int, re.findall(r"\d+", text)))
    return None


def rewritten(gold: str, prediction: str, rule: Callable[[str], str]) -> Reduced:
    """Rewrite both by `exact` or `expanded`; what these refuse is equal to nothing."""
    both = rule(gold), rule(prediction)
    return None if both == (gold, prediction) else both if all(both) else False


def exact(text: str) -> str:
    """Take the exact value of 2\\sqrt{3} \\approx 3.46; refuse, by '', other roundings."""
    if not _ABOUT.search(text):
        return text
    left, rounded = _ABOUT.split(text, maxsplit=1)
    if re.fullmatch(r"[A-Za-df-z](_\w)?|\\(?!pi)[a-z]+", left):
        return f"{left}={rounded}"
    value, unit = split_unit(rounded.rstrip(")").strip())
    try:
        node = parse_expression(split_unit(left.split("=")[-1])[0])
        near = Node("number", value=Fraction(value))
        off = real(evaluate(Node("abs", (Node("subtract", (node, near)),))))
    except ValueError:  # outside the grammar, or without a value
        return ""
    if off >= as_number(Fraction(1, 10 ** len(value.partition(".")[2]))):
        return ""
    return left + rounded.rstrip(")").strip().removeprefix(value) if unit else left


def labelled(gold: str, prediction: str) -> Reduced:
    """Drop what an answer says of its value: 最大值为5; two answers must not say different things."""
    found = [_LABEL.fullmatch(text) for text in (gold, prediction)]
    names = [re.sub(r"不等式组?|[的\s]|所求|原|该|\bthe\b", "", one["name"]) if one else "" for one in found]
    if re.search("[不非没未无否除]|(?<![a-z])(?:not|never|except)(?![a-z])", " ".join(names)):
        return False
    if not any(found):
        return None
    if all(found) and not (names[0].endswith(names[1]) or names[1].endswith(names[0])):
        return False
    values = (one["value"] if one else text for one, text in zip(found, (gold, prediction), strict=True))
    first, second = (words_as_symbols(re.sub(r"^\{(.*)\}$", r"\\{\1\\}", value)) for value in values)
    return first, second


def congruences(gold: str, prediction: str) -> Reduced:
    """Compare x \\equiv 3 \\pmod 7 by the classes of remainders."""
    found = [_MODULUS.fullmatch(text) for text in (gold, prediction)]
    if not all(found):
        return False if any(found) else None
    (left, right, modulus), (other_left, other_right, other_modulus) = (one.groups() for one in found if one)
    sides = {side.replace(" ", "") for side in (left, other_left) if side}
    if int(modulus) != int(other_modulus) or len(sides) > 1 or not int(modulus):
        return False
    lists = [region.read_list(side.replace(" ", "")) for side in (right, other_right)]
    if all(re.fullmatch(r"-?\d{1,50}", item) for items in lists for item in items):
        classes = [{int(item) % int(modulus) for item in items} for items in lists]
        return classes[0] == classes[1]
    return right.strip(), other_right.strip()


def mixed_numbers(gold: str, prediction: str) -> Reduced:
    """Read 2 and 1/3 as a mixed number, unless the other answer is a list."""
    pattern = r"(\d+) ?and ?(?:\\frac ?\{?|(?=\d+/))(\d+?)\}?[/ ]?\{?(\d+)\}?((?: [A-Za-z ]+)?)"
    found = [re.fullmatch(pattern, text) for text in (gold, prediction)]
    other = prediction if found[0] else gold
    if all(found) == any(found) or len(region.read_list(other)) > 1 or region.read_group(other):
        return None
    if any(m and not 0 < int(m[2]) < int(m[3]) for m in found):
        return None
    first, second = (f"{m[1]}\\frac{{{m[2]}}}{{{m[3]}}}{m[4]}" if m else other for m in found)
    return first, second


def expanded(text: str) -> str:
    """Write a determinant of two or three rows as the number it is; refuse, by '', a larger one."""
    text = _DETERMINANT.sub(_number, text)
    return "" if "vmatrix" in text.lower() else text


def _number(determinant: re.Match[str]) -> str:
    written_rows = [row for row in (determinant[1] or determinant[2]).split("\\\\") if row.strip()]
    rows = [[f"({cell.strip()})" for cell in row.split("&")] for row in written_rows]
    if len(rows) not in (2, 3) or any(len(row) != len(rows) for row in rows):
        return determinant[0] + "vmatrix"
    if len(rows) == 2:
        return f"({rows[0][0]}{rows[1][1]}-{rows[0][1]}{rows[1][0]})"
    ways = ((0, 1, 2), (1, 2, 0), (2, 0, 1)), ((0, 2, 1), (1, 0, 2), (2, 1, 0))
    plus, minus = ("+".join("".join(rows[i][j] for i, j in enumerate(way)) for way in each) for each in ways)
    return f"({plus}-({minus}))"
