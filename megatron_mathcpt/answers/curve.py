"""Whether two equations have the same solutions: the same line, curve or surface.

Proportional sides decide at once; otherwise points of each curve are found by Newton's method from fixed
complex starts and must lie on the other one.
"""

from fractions import Fraction

from megatron_mathcpt.answers.expression import Node
from megatron_mathcpt.answers.value import (
    Undefined,
    Value,
    arithmetic,
    as_number,
    close,
    evaluate,
    sample_points,
)

_STARTS = ("0.7+0.4j", "-1.3+0.9j", "2.1-1.7j", "-0.4-2.3j", "3.9+0.1j", "-5.2+0.2j")


def same_curve(first: Node, second: Node) -> bool | None:
    """Whether `first` = 0 and `second` = 0 hold at the same points; None when no point was found."""
    names = first.symbols() | second.symbols()
    if first.symbols() != second.symbols():
        return False
    if _proportional(first, second, names):
        return True
    met = 0
    for variable in sorted(names):
        for point in sample_points(names - {variable}, count=3):
            on_first, on_second = _zeros(first, variable, point), _zeros(second, variable, point)
            met += len(on_first) + len(on_second)
            if not _all_zero(second, on_first, variable, point) or not _all_zero(
                first, on_second, variable, point
            ):
                return False
    return True if met >= 2 else None


def _proportional(first: Node, second: Node, names: set[str]) -> bool:
    ratios = []
    for point in sample_points(names, count=5):
        try:
            a, b = evaluate(first, point), evaluate(second, point)
            if b == 0:
                return False
            ratios.append(as_number(a) / as_number(b))
        except Undefined:
            continue
    return len(ratios) >= 3 and ratios[0] != 0 and all(close(ratios[0], ratio) for ratio in ratios[1:])


def _zeros(node: Node, variable: str, point: dict[str, Fraction]) -> list[Value]:
    context = arithmetic()
    found = []
    for start in _STARTS:
        place = context.mpmathify(start)
        try:
            for _ in range(80):
                step = _newton_step(node, variable, point, place)
                place = place - step
                if abs(place) > 10**6:  # on its way to a root at infinity
                    break
                if abs(step) < context.mpf(10) ** -50 * (1 + abs(place)):
                    found.append(place)
                    break
        except (Undefined, ZeroDivisionError):
            continue
    return found


def _newton_step(node: Node, variable: str, point: dict[str, Fraction], place: Value) -> Value:
    context = arithmetic()
    width = context.mpf(10) ** -25
    value, ahead = (as_number(evaluate(node, {**point, variable: at})) for at in (place, place + width))
    if value == 0:
        return context.mpf(0)
    slope = (ahead - value) / width
    return value / slope if slope else context.mpf(1)


def _all_zero(node: Node, places: list[Value], variable: str, point: dict[str, Fraction]) -> bool:
    context = arithmetic()
    for place in places:
        try:
            step = _newton_step(node, variable, point, place)
        except (Undefined, ZeroDivisionError):
            return False
        if abs(step) > context.mpf(10) ** -20 * (1 + abs(place)):
            return False
    return True
