"""The outer structure of a normalised answer: lists, brackets, equations, and sets of real numbers.

Two sets are equal if no number is in only one of them. Between two adjacent critical numbers (ends of
intervals, roots of both sides) membership cannot change, so comparing at every critical number and once
between each two is exact if all of them are known. An inequality is false where a side has no value.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from megatron_mathcpt.answers.expression import Node, NotAnExpression, OutOfSteps, parse_expression, spend
from megatron_mathcpt.answers.normalize import closes_at_end
from megatron_mathcpt.answers.roots import NotAllKnown, real_zeros
from megatron_mathcpt.answers.value import Undefined, Value, arithmetic, close, evaluate, real, sample_points

_NAME = re.compile(
    r"\|[A-Za-z]{1,3}\||(?:\\[A-Za-z]+\s*)*(?:[A-Za-z]{0,3}|\\[A-Za-z]+\s*(?:\{[^{}]*\})?)"
    r"(?:_(?:\{[^{}]*\}|\w))?'*(?:\^\{?-1\}?)?\s*(?:\([A-Za-z_0-9,+\-]{1,5}\))?"
)
_ORDER = r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])"
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
LIST_SEPARATOR = r",|;|(?<![A-Za-z])or(?![A-Za-z])|(?<![A-Za-z])and(?![A-Za-z])|或者?|和|与|以及|及|且|并且"
Point = dict[str, Fraction]
_RELATION = _ORDER + "|="
_PARTIAL = {"root", "power", "ln", "lg", "log"}
_OR = r"\\cup(?![A-Za-z])|(?<![A-Za-z])or(?![A-Za-z])|或者?"
_AND = r",|;|(?<![A-Za-z])and(?![A-Za-z])|且|并且|和"


class Group(NamedTuple):
    brackets: str
    items: tuple[str, ...]
    is_set: bool  # in braces


class Equation(NamedTuple):
    """First and last side of `a = b (= c ...)`; `name` is the left one if it only names the right one."""

    left: str
    right: str
    name: str


def split_top(text: str, separator: str) -> list[str]:
    """Split `text` at matches of `separator` outside all brackets; drop empty pieces."""
    spend(len(text) // 50)
    pieces, depth, start = [], 0, 0
    for found in re.finditer(rf"([(\[{{])|([)\]}}])|{separator}", text):
        depth += bool(found[1]) - bool(found[2])
        if depth == 0 and not found[1] and not found[2]:
            pieces.append(text[start : found.start()])
            start = found.end()
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def read_list(text: str) -> list[str]:
    if not re.fullmatch(r"-?[\d,.]+", text):  # 24,112 alone may be two numbers; in other company it is one
        text = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    return [found for piece in split_top(text, LIST_SEPARATOR) for found in _signs(piece)]


def _signs(text: str) -> list[str]:
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return [upper.removeprefix("+").strip(), lower]


def read_group(text: str) -> Group | None:
    """Parse an answer that is one bracket: a point (also `A(1, 2)`), vector or set."""
    text = re.sub(r"^[A-Z]('|_\{?\w\}?)?\s*(?=\()", "", text)
    opening = re.match(r"\\\{|[(\[]", text)
    closing = re.search(r"(\\\}|[)\]])$", text)
    if not opening or not closing or not closes_at_end(text, "([{", ")]}"):
        return None
    inside, is_set = text[opening.end() : closing.start()], opening[0] == "\\{"
    items = split_top(inside, LIST_SEPARATOR if is_set else ",|;")
    if is_set:
        items = [found for item in items for found in _signs(item)]
    elif len(items) < 2:
        return None
    return Group(opening[0][-1] + closing[0][-1], tuple(items), is_set)


def read_equation(text: str) -> Equation | None:
    """Parse an equation; None for an inequality or anything else."""
    if "=" not in text or re.search(_ORDER, text):
        return None
    sides = split_top(text, "=")
    if len(sides) < 2:
        return None
    left = sides[0]
    chinese = "=" not in left and re.search("[一-鿿]", left)
    named = chinese or (_NAME.fullmatch(left) and not re.fullmatch(r"[\d.]+", left))
    return Equation(left, sides[-1], re.sub(r"\s", "", left) if named else "")


def read_matrix(text: str) -> tuple[tuple[str, ...], ...] | None:
    """Return the rows of an answer that is a LaTeX matrix or column vector."""
    times = re.match(r"([^=(){}\\]|\\frac\{\d+\}\{\d+\}|\\frac\d\d|\\cdot)*?(?=[(\[]?\s*\\begin)", text)
    factor, text = (times[0], text[times.end() :]) if times else ("", text)
    text = re.sub(r"^[(\[]\s*(\\begin\s*\{(?:array|matrix)\}.*)[)\]]$", r"\1", text)
    matrix = r"\\begin\s*\{([pbB]?matrix|array)\}(?:\s*\{[clr|]+\})?(.*)\\end\s*\{\1\}"
    if not (found := re.fullmatch(matrix, text, re.DOTALL)):
        return None
    rows = re.split(r"\\\\|\\cr", found[2])
    cells = [[cell.strip() for cell in row.split("&")] for row in rows if row.strip()]
    return tuple(tuple(f"{factor}({cell})" if factor else cell for cell in row) for row in cells)


class Region(NamedTuple):
    """A set of real numbers, given the values of all other symbols at a point."""

    contains: Callable[[Value, Point], bool]
    critical: Callable[[Point], list[Value]]  # numbers where membership can change
    variables: frozenset[str]  # all symbols of the inequalities


def looks_like_region(text: str) -> bool:
    """Whether an answer can only be a set of numbers: it has a relation, a union or an infinite end."""
    signs = r"\\(?:cup|cap|in|infty|mathbb|emptyset|setminus|backslash)(?![A-Za-z])"
    return re.search(f"{_ORDER}|{signs}", text) is not None


def read_region(text: str) -> Region | None:
    """Parse a set of real numbers; None for anything else."""
    pieces = re.split(rf"{_RELATION}|{_OR}|{_AND}|\\in(?![A-Za-z])|[|{{}}\[\]()\\]", text)
    names = {piece.strip() for piece in pieces if re.fullmatch(r"\s*[A-Za-z](_\w)?\s*", piece)}
    names = names or {*re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))} - {"e", "i"}
    try:
        return _read(text.strip(), main_variable(names))
    except NotAnExpression:
        return None


def same_region(first: Region, second: Region) -> bool | None:
    """Whether two sets are equal; None if nothing can be evaluated."""
    names = set(first.variables | second.variables)
    variable = main_variable(names)
    decided, complete = False, True
    for point in sample_points(names - {variable}, count=8) if len(names) > 1 else [{}]:
        critical = list(map(Fraction, range(-8, 9)))
        for part in (first, second):
            try:
                critical += part.critical(point)
            except NotAllKnown:
                complete = False
        for value in _test_values(critical):
            try:
                memberships = first.contains(value, point), second.contains(value, point)
            except Undefined:
                continue
            decided = True
            if memberships[0] != memberships[1]:
                return False
    if decided and not complete:
        raise OutOfSteps("not all zeros are known")
    return True if decided else None


def main_variable(names: set[str]) -> str:
    return min(names, key=lambda name: (name not in ("x", "y", "t"), name), default="x")


def _read(text: str, variable: str) -> Region:  # noqa: PLR0911 - one line a notation
    text = re.sub(r"^(?:when|for|if|当|时)\s*|\s*(?:时)$", "", text.strip().rstrip(",;"))
    if builder := re.fullmatch(r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\{R\})?\s*[|:,]\s*(.*)\\\}", text):
        return _read(builder[1], variable)
    for separator, rule in (
        (_OR, any),
        (r"\\cap(?![A-Za-z])", all),
        (r"\\(?:setminus|backslash)(?![A-Za-z])", lambda inside: inside[0] and not any(inside[1:])),
    ):
        pieces = split_top(text, separator)
        if len(pieces) > 1:
            return _combine([_read(piece, variable) for piece in pieces], rule)
    pieces = split_top(text, r"\\in(?![A-Za-z])")
    if len(pieces) == 2:
        return _read(pieces[1], variable)
    if text in ("\\mathbb{R}", "R", "\\emptyset"):
        return Region(lambda value, point: text != "\\emptyset", lambda point: [], frozenset())
    interval = re.fullmatch(r"([(\[])(.*)([)\]])", text)
    if interval and len(ends := split_top(interval[2], ",")) == 2:
        return _interval(interval[1] + interval[3], [parse_expression(end) for end in ends])
    if members := re.fullmatch(r"\\\{(.*)\\\}", text):
        return _finite([parse_expression(item) for item in split_top(members[1], ",")])
    pieces = split_top(text, _AND)
    if len(pieces) > 1:
        return _combine([_read(piece, variable) for piece in pieces], all)
    return _relation(text, variable)


def _combine(parts: list[Region], rule: Callable[[list[bool]], bool]) -> Region:
    return Region(
        lambda value, point: rule([part.contains(value, point) for part in parts]),
        lambda point: [number for part in parts for number in part.critical(point)],
        frozenset().union(*(part.variables for part in parts)),
    )


def _interval(brackets: str, bounds: list[Node]) -> Region:
    def contains(value: Value, point: Point) -> bool:
        ends, value = [real(evaluate(bound, point)) for bound in bounds], real(value)
        closed = [bracket in "[]" for end, bracket in zip(ends, brackets, strict=True) if close(value, end)]
        return all(closed) if closed else bool(ends[0] < value < ends[1])

    return _finite(bounds)._replace(contains=contains)


def _finite(members: list[Node]) -> Region:
    return Region(
        lambda value, point: any(close(value, member) for member in _values(members, point)),
        lambda point: _values(members, point),
        frozenset().union(*(member.symbols() for member in members)),
    )


def _relation(text: str, variable: str) -> Region:
    relations = re.findall(_RELATION, text)
    sides = [parse_expression(side) for side in split_top(text, _RELATION)]
    if not relations or len(sides) != len(relations) + 1 or not any(side.symbols() for side in sides):
        raise NotAnExpression("no relation between expressions")

    symbols = frozenset[str]().union(*(side.symbols() for side in sides))
    # Roots and logarithms must be real even where the whole, as (\\ln x)^2, is real again.
    partial = [part for side in sides for part in side.walk() if part.operator in _PARTIAL]

    def contains(value: Value, point: Point) -> bool:
        try:
            *_, values = (
                [real(evaluate(node, {**point, variable: value})) for node in nodes]
                for nodes in (partial, sides)
            )
        except Undefined as error:
            exact = isinstance(value, Fraction) or isinstance(error.__cause__, ZeroDivisionError)
            if exact and symbols <= {variable, *point} and not isinstance(error.__cause__, OverflowError):
                return False  # outside the domain of a side
            raise
        if not isinstance(value, Fraction) and any(10**50 < abs(side) < arithmetic().inf for side in values):
            return False  # an irrational pole, up to rounding
        return all(map(_is_true, values, relations, values[1:]))

    def critical(point: Point) -> list[Value]:
        found = _values([side for side in sides if variable not in side.symbols()], point)
        for first, second in pairwise(sides):
            endless = any(part.value == "infty" for part in (*first.walk(), *second.walk()))
            if variable in first.symbols() | second.symbols() and not endless:
                found += real_zeros(Node("subtract", (first, second)), variable, point)
        return found

    return Region(contains, critical, symbols)


def _is_true(first: Value, sign: str, second: Value) -> bool:
    if close(first, second):
        return sign in ("\\le", "\\ge", "=")
    less = bool(first < second)
    return {"<": less, "\\le": less, "=": False, "\\ne": True}.get(sign, not less)


def _values(nodes: list[Node], point: Point) -> list[Value]:
    found = []
    for node in nodes:
        with suppress(Undefined):
            value = evaluate(node, point)
            real(value)  # raises if it is not
            found.append(value)
    return [value for value in found if not arithmetic().isinf(value)]


def _test_values(critical: list[Value]) -> list[Value]:
    """Return the critical numbers, and exact ones between and outside them."""
    places = distinct(critical)
    ends = [real(places[0]) - 1, *places, real(places[-1]) + 1]
    between = [Fraction(int((real(a) + b) * 2**120), 2**121) for a, b in pairwise(ends)]
    return [*places, *between, Fraction(-(10**9)), Fraction(10**9)]


def distinct(places: list[Value]) -> list[Value]:
    """Return different places in their order, exact ones if there are."""
    found: list[Value] = []
    for place in sorted(places, key=lambda place: (real(place), not isinstance(place, Fraction))):
        if not found or not close(found[-1], place):
            found.append(place)
        elif isinstance(place, Fraction):
            found[-1] = place
    return found
