"""Sets of real numbers: intervals, unions, inequalities. Two are equal when no number tells them apart.

Between two neighbouring critical numbers (ends of intervals, roots of both sides) membership cannot change,
so comparing at every critical number and once between each two is exact when all of them are known.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from megatron_mathcpt.answers.expression import Node, NotAnExpression, parse_expression
from megatron_mathcpt.answers.shape import has_relation, split_top
from megatron_mathcpt.answers.value import (
    Undefined,
    Value,
    arithmetic,
    as_number,
    close,
    evaluate,
    real,
    sample_points,
)

Point = dict[str, Fraction]
_RELATION = r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|="
_OR = r"\\cup(?![A-Za-z])|(?<![A-Za-z])or(?![A-Za-z])|或者?"
_AND = r",|;|(?<![A-Za-z])and(?![A-Za-z])|且|并且|和"


@dataclass(frozen=True)
class Region:
    """`contains(value, point)` tells membership; `critical(point)` lists numbers where it can change.

    `point` gives the other symbols their values; `variables` holds every symbol of the inequalities.
    """

    contains: Callable[[Value, Point], bool]
    critical: Callable[[Point], list[Value]]
    variables: frozenset[str]


def looks_like_region(text: str) -> bool:
    """Whether the text can only be a set of numbers: it has a relation, a union, an infinite end, or is R."""
    return has_relation(text) or bool(
        re.search(r"\\(?:cup|cap|in|infty|mathbb|emptyset|setminus|backslash)(?![A-Za-z])", text)
    )


def read_region(text: str) -> Region | None:
    """The set that `text` describes; None when it describes none."""
    try:
        return _read(text.strip(), _variable(text))
    except NotAnExpression:
        return None


def same_region(first: Region, second: Region) -> bool | None:
    """Whether two sets are equal; None when nothing could be evaluated."""
    names = set(first.variables | second.variables)
    variable = _main(names)
    decided = False
    for point in sample_points(names - {variable}, count=8) if len(names) > 1 else [{}]:
        for value in _test_values([*first.critical(point), *second.critical(point)]):
            try:
                memberships = first.contains(value, point), second.contains(value, point)
            except Undefined:
                continue
            decided = True
            if memberships[0] != memberships[1]:
                return False
    return True if decided else None


def _variable(text: str) -> str:
    names: set[str] = set()
    for piece in re.split(rf"{_RELATION}|{_OR}|{_AND}|\\in(?![A-Za-z])|[|{{}}\[\]()\\]", text):
        if re.fullmatch(r"\s*[A-Za-z](_\w)?\s*", piece):
            names.add(piece.strip())
    return _main(names)


def _main(names: set[str]) -> str:
    ranked = sorted(names, key=lambda name: (name not in ("x", "y", "t"), name))
    return ranked[0] if ranked else "x"


def _read(text: str, variable: str) -> Region:  # noqa: C901, PLR0911 - one line a notation
    text = _strip(text)
    builder = re.fullmatch(r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\{R\})?\s*[|:,]\s*(.*)\\\}", text)
    if builder:
        return _read(builder.group(1), variable)
    pieces = split_top(text, _OR)
    if len(pieces) > 1:
        return _combine([_read(piece, variable) for piece in pieces], any)
    pieces = split_top(text, r"\\cap(?![A-Za-z])")
    if len(pieces) > 1:
        return _combine([_read(piece, variable) for piece in pieces], all)
    pieces = split_top(text, r"\\setminus(?![A-Za-z])|\\backslash(?![A-Za-z])")
    if len(pieces) == 2:
        return _difference(_read(pieces[0], variable), _read(pieces[1], variable))
    pieces = split_top(text, r"\\in(?![A-Za-z])")
    if len(pieces) == 2:
        return _read(pieces[1], variable)
    if text in ("\\mathbb{R}", "R"):
        return Region(lambda value, point: True, lambda point: [], frozenset())
    if text == "\\emptyset":
        return Region(lambda value, point: False, lambda point: [], frozenset())
    interval = re.fullmatch(r"([(\[])(.*)([)\]])", text)
    if interval and len(ends := split_top(interval.group(2), ",")) == 2:
        low, high = map(parse_expression, ends)
        return _interval(interval.group(1) + interval.group(3), low, high)
    members = re.fullmatch(r"\\\{(.*)\\\}", text)
    if members:
        return _finite([parse_expression(item) for item in split_top(members.group(1), ",")])
    pieces = split_top(text, _AND)
    if len(pieces) > 1:
        return _combine([_read(piece, variable) for piece in pieces], all)
    return _relation(text, variable)


def _strip(text: str) -> str:
    return re.sub(r"^(?:when|for|if|当|时)\s*|\s*(?:时)$", "", text.strip().rstrip(",;"))


def _combine(parts: list[Region], rule: Callable[[list[bool]], bool]) -> Region:
    return Region(
        lambda value, point: rule([part.contains(value, point) for part in parts]),
        lambda point: [number for part in parts for number in part.critical(point)],
        frozenset().union(*(part.variables for part in parts)),
    )


def _difference(whole: Region, removed: Region) -> Region:
    return Region(
        lambda value, point: whole.contains(value, point) and not removed.contains(value, point),
        lambda point: whole.critical(point) + removed.critical(point),
        whole.variables | removed.variables,
    )


def _interval(brackets: str, low: Node, high: Node) -> Region:
    def contains(value: Value, point: Point) -> bool:
        ends = [real(evaluate(end, point)) for end in (low, high)]
        closed = [bracket in "[]" for end, bracket in zip(ends, brackets, strict=True) if close(value, end)]
        return all(closed) if closed else bool(ends[0] < value < ends[1])

    names = frozenset(low.symbols() | high.symbols())
    return Region(contains, lambda point: _values([low, high], point), names)


def _finite(members: list[Node]) -> Region:
    return Region(
        lambda value, point: any(close(value, member) for member in _values(members, point)),
        lambda point: _values(members, point),
        frozenset().union(*(member.symbols() for member in members)),
    )


def _relation(text: str, variable: str) -> Region:
    """A chain of relations between expressions, such as -1 < x \\le 2."""
    relations = re.findall(_RELATION, text)
    sides = [parse_expression(side) for side in split_top(text, _RELATION)]
    if not relations or len(sides) != len(relations) + 1 or not any(side.symbols() for side in sides):
        raise NotAnExpression("no relation between expressions")

    def contains(value: Value, point: Point) -> bool:
        at = {**point, variable: value}
        values = [real(evaluate(side, at)) for side in sides]
        return all(_holds(a, sign, b) for a, sign, b in zip(values, relations, values[1:], strict=False))

    def critical(point: Point) -> list[Value]:
        found = _values([side for side in sides if variable not in side.symbols()], point)
        for first, second in pairwise(sides):
            if Node("symbol", value=variable) not in (first, second):
                found += _roots(Node("subtract", (first, second)), variable, point)
        return found

    return Region(contains, critical, frozenset().union(*(side.symbols() for side in sides)))


def _holds(first: Value, sign: str, second: Value) -> bool:
    if close(first, second):
        return sign in ("\\le", "\\ge", "=")
    less = bool(first < second)
    return {"<": less, "\\le": less, "=": False, "\\ne": True}.get(sign, not less)


def _values(nodes: list[Node], point: Point) -> list[Value]:
    found = []
    for node in nodes:
        try:
            value = real(evaluate(node, point))
        except Undefined:
            continue
        if not arithmetic().isinf(value):
            found.append(value)
    return found


def _roots(node: Node, variable: str, point: Point) -> list[Value]:
    """Roots between -50 and 50 where the sign changes on a grid of quarters, or that lie on the grid."""
    found: list[Value] = []
    before: tuple[Fraction, Value] | None = None
    for step in range(-200, 201):
        place = Fraction(step, 4)
        try:
            value = real(evaluate(node, {**point, variable: place}))
        except Undefined:
            before = None
            continue
        if value == 0:
            found.append(place)
        elif before and before[1] != 0 and (before[1] < 0) != (value < 0):
            found.append(_bisect(node, variable, point, before[0], place))
        before = (place, value)
    return found


def _bisect(node: Node, variable: str, point: Point, low: Fraction, high: Fraction) -> Value:
    def function(place: Value) -> Value:
        return real(evaluate(node, {**point, variable: place}))

    a, b = as_number(low), as_number(high)
    negative_at_a = function(a) < 0
    for _ in range(190):
        middle = (a + b) / 2
        a, b = (middle, b) if (function(middle) < 0) == negative_at_a else (a, middle)
    return b


def _test_values(critical: list[Value]) -> list[Value]:
    """Every critical number, one number between each two neighbours, and some beyond the ends."""
    distinct: list[Value] = []
    for value in sorted(map(as_number, critical)):
        if not distinct or not close(distinct[-1], value):
            distinct.append(value)
    between = [(a + b) / 2 for a, b in pairwise(distinct)]
    ends = [distinct[0] - 1, distinct[-1] + 1] if distinct else [arithmetic().mpf(0)]
    return [*distinct, *between, *ends, *map(arithmetic().mpf, (-(10**9), 10**9))]
