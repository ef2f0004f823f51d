"""Functions given by cases: equal if they have equal values wherever one of them has one.

Between two adjacent numbers where a condition can change, one branch of each function counts; branches are
compared at several places of each such interval and at its ends.
"""

import re
from fractions import Fraction
from itertools import pairwise

from megatron_mathcpt.answers import region
from megatron_mathcpt.answers.expression import Node, NotAnExpression, parse_expression
from megatron_mathcpt.answers.normalize import closes_at_end
from megatron_mathcpt.answers.value import Value, as_number, same_at, same_value, sample_points

_CASES = re.compile(r"(?:[^=]*=)?\s*\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)
# 当x>0时, f(x)=x
_IN_PROSE = re.compile(
    r"(?:当|[Ii]f|[Ff]or|[Ww]hen)\s*([^当=]+?)(?:时\s*,?|,)(?:[^=<>,;当]*=)?\s*([^,;当=<>]+?)\s*(?:[,;]|$)"
)
_AROUND = re.compile(
    r"^(?:if|when|for|where|当)\s*|\s*时$|[,(]?\s*[nk]\s*\\in\s*\\?[a-z{}]*N[\s}^{*+_\d]*\)?$"
)
_OTHERWISE = re.compile(r"(?:otherwise|else|其[他它余].{0,3})")
_PLACES = tuple(Fraction(place, 1009) for place in (83, 211, 389, 547, 701, 953))
Branch = tuple[str, str]


def read_cases(text: str) -> list[Branch] | None:
    """Return expressions and conditions of an answer that is a function by cases."""
    if not (found := _CASES.fullmatch(text)):
        return None
    rows = [row.split("&", 1) for row in found[1].split("\\\\") if "&" in row]
    return [(expression.strip(), condition.strip()) for expression, condition in rows]


def same_cases(gold: str, prediction: str) -> bool | None:
    first, second = read_cases(gold), read_cases(prediction)
    if not first and not second:
        return None
    one, two = (
        found
        or [(row[2], row[1]) for row in _IN_PROSE.finditer(text)]
        or [(re.sub(r"^[^=]*=", "", text), "\\mathbb{R}")]
        for found, text in ((first, gold), (second, prediction))
    )
    try:
        return _same_functions(_Function(one), _Function(two))
    except NotAnExpression:  # conditions in words: n is even
        return _same_branches(one, two)


def _same_branches(first: list[Branch], second: list[Branch]) -> bool:
    def spelled(branches: list[Branch]) -> dict[str, str]:
        words = r"\s|\b(?:is|if|when|for)\b|an? |是|为"
        return {re.sub(words, "", cond): re.sub(r"\s", "", value) for value, cond in branches}

    one, two = spelled(first), spelled(second)
    if one.keys() != two.keys():
        return False
    for condition, value in one.items():
        try:
            nodes = [parse_expression(text) for text in (value, two[condition])]
        except NotAnExpression:
            nodes = []
        if not (same_value(*nodes) if nodes else value == two[condition]):
            return False
    return True


class _Function:
    def __init__(self, branches: list[Branch]) -> None:
        self.branches = [(parse_expression(value), _condition(text)) for value, text in branches]
        self.regions = [where for _, where in self.branches if where]
        self.variables = frozenset[str]().union(*(where.variables for where in self.regions))
        self.symbols = self.variables.union(*(value.symbols() for value, _ in self.branches))

    def branch(self, place: Value, point: region.Point) -> Node | None:
        for value, where in self.branches:
            regions = [where] if where else self.regions
            if any(each.contains(place, point) for each in regions) == bool(where):
                return value
        return None


def _condition(text: str) -> region.Region | None:
    """Return the set where a branch counts; None for all that is left."""
    text = text.strip()
    text = text[1:-1] if text.startswith("(") and closes_at_end(text, "(", ")") else text
    text = _AROUND.sub("", text)
    if _OTHERWISE.fullmatch(text.strip()):
        return None
    if (found := region.read_region(text)) is None:
        raise NotAnExpression(text)
    return found


def _same_functions(first: _Function, second: _Function) -> bool | None:
    variables = first.variables | second.variables
    variable = region.main_variable(set(variables))
    if not variables <= {variable}:
        raise NotAnExpression("conditions on several symbols")
    decided, whole = False, variable in ("n", "k")
    # Where a sequence begins is left out of its general term.
    plain = whole and not (first.variables and second.variables)
    others, regions = set(first.symbols | second.symbols) - {variable}, [*first.regions, *second.regions]
    for point in sample_points(others, count=3) if others else [{}]:
        critical = [place for part in regions for place in part.critical(point)]
        for place in _places(critical, whole=whole):
            one, two = first.branch(place, point), second.branch(place, point)
            if (one is None) != (two is None) and not plain:
                return False
            if one is None or two is None:
                continue
            same = same_at(one, two, {**point, variable: place})
            if same is False:
                return False
            decided = decided or bool(same)
    return True if decided else None


def _places(critical: list[Value], *, whole: bool) -> list[Value]:
    ends = region.distinct(critical)
    if whole:
        low, high = (int(ends[0]), int(ends[-1])) if ends else (1, 1)
        return [Fraction(place) for place in range(low - 2, min(high, low + 40) + 8)]
    bounds = [ends[0] - 9, *ends, ends[-1] + 9] if ends else [Fraction(-9), Fraction(9)]
    inside = [low + (high - low) * as_number(part) for low, high in pairwise(bounds) for part in _PLACES]
    return [*ends, *inside]
