"""Value of an expression: an exact fraction where possible, else 60 digits; each step is bounded and counted.

Two expressions are equal if they agree to 45 digits, at several points if they have symbols: different ones
agree at random points with negligible probability (Schwartz-Zippel).
"""

import math
import operator
import re
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from megatron_mathcpt.answers.expression import Node, spend

if TYPE_CHECKING:
    from mpmath import MPContext

DIGITS = 60
_AGREE = 45  # of them; the rest is for rounding, which cancellation amplifies
_MAX_BITS = 20_000  # of an exact fraction or an exponent; beyond, the answer is ungraded
_MAX_MAGNITUDE = 1000  # bits before the point in the argument of a function: sin needs as many digits of pi
Value = Any  # Fraction, or a real or complex number of `arithmetic()`


class Undefined(ValueError):
    """The expression has no value: division by zero, a logarithm of zero, an unknown symbol."""


@cache
def arithmetic() -> "MPContext":
    """Return an mpmath context of our own: math libraries change the precision of the global one."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = DIGITS
    return context


def evaluate(node: Node, point: Mapping[str, Value] = MappingProxyType({})) -> Value:
    """Return the value of `node` with its symbols at `point`; raises `Undefined`."""
    spend(1)
    values: list[Value] = []
    for part in reversed(node.walk()):
        if part.operator == "number":
            values.append(part.value)
        elif part.operator == "symbol":
            if part.value not in point:
                raise Undefined(f"symbol {part.value}")
            values.append(point[str(part.value)])
        elif part.operator == "constant":
            values.append(_CONSTANTS[str(part.value)](arithmetic()))
        else:
            spend(1 if part.operator in _CHEAP else 4)
            first = len(values) - len(part.arguments)
            try:
                values[first:] = [_bounded(_OPERATIONS[part.operator](*values[first:]))]
            except (ArithmeticError, AttributeError, TypeError, KeyError, ValueError) as error:
                raise Undefined(f"{part.operator}: {error}") from error
    return values[0]


def close(first: Value, second: Value) -> bool:
    """Whether two values are equal, exactly or to 45 digits if one is not rational."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    spend(1)
    context = arithmetic()
    a, b = as_number(first), as_number(second)
    if context.isinf(a) or context.isinf(b):
        return bool(a == b)
    # Relative, but absolute next to zero, to which nothing is relatively close.
    scale = max(abs(a), abs(b), context.mpf(1) if min(abs(a), abs(b)) == 0 else context.mpf(0))
    return bool(abs(a - b) <= scale * context.mpf(10) ** -_AGREE)


def sample_points(names: set[str], count: int = 6) -> list[dict[str, Fraction]]:
    """Return fixed points for the symbols `names`: positive, then of mixed sign; n and k get integers."""
    spend(len(names) * count // 4)
    return [{name: _coordinate(name, index) for name in sorted(names)} for index in range(count)]


def same_value(first: Node, second: Node) -> bool | None:
    """Whether two expressions are equal wherever both are real; None if too few points decide."""
    names = first.symbols() | second.symbols()
    if not names:
        return same_at(first, second)
    verdicts: dict[bool, list[bool]] = {True: [], False: []}  # at points where both are real, and others
    for point in sample_points(names):
        with suppress(Undefined):
            a, b = evaluate(first, point), evaluate(second, point)
            verdicts[is_real(a) and is_real(b)].append(close(a, b))
    imaginary = any(part == Node("constant", value="i") for part in (*first.walk(), *second.walk()))
    decided = verdicts[True] + (verdicts[False] if imaginary or len(verdicts[True]) < 2 else [])
    return all(decided) if len(decided) >= 2 else None


def same_at(first: Node, second: Node, point: Mapping[str, Value] = MappingProxyType({})) -> bool | None:
    """Whether two expressions have the same value at `point`; None if neither has one."""
    values: list[Value] = []
    for node in (first, second):
        with suppress(Undefined):
            values.append(evaluate(node, point))
    if len(values) < 2:  # a number without value, or too large for one, differs from one that has a value
        return False if values else None
    return close(*values)


def is_real(value: Value) -> bool:
    rounding = arithmetic().mpf(10) ** -_AGREE
    return isinstance(value, Fraction) or bool(abs(arithmetic().im(value)) <= abs(value) * rounding)


def real(value: Value) -> Value:
    """Convert a value to a real 60-digit number; raises `Undefined` for a complex one."""
    spend(1)
    if not is_real(value):
        raise Undefined("not a real number")
    return arithmetic().re(as_number(value))


def _coordinate(name: str, index: int) -> Fraction:
    seed = zlib.crc32(f"{name}:{index}".encode())
    if name in ("n", "k"):
        return Fraction(4 + 5 * index + seed % 5)
    value = Fraction(seed % 997 + 300, 389 + seed % 13)
    return -value if index >= 3 and seed % 2 else value


def as_number(value: Value) -> Value:
    """Convert a fraction to a 60-digit number, as mpmath does not compute with fractions."""
    if not isinstance(value, Fraction):
        return value
    return arithmetic().mpf(value.numerator) / value.denominator


def _bounded(value: Value) -> Value:
    context, bits = arithmetic(), 0
    if isinstance(value, Fraction):
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    elif context.isnan(value):
        raise ValueError("not a number")
    elif (size := abs(value)) and not context.isinf(size):
        bits = abs(context.mag(size))
    if bits > _MAX_BITS:
        raise OverflowError("number too large")
    return value


def _alike(first: Value, second: Value) -> tuple[Value, Value]:
    if not (isinstance(first, Fraction) and isinstance(second, Fraction)):
        return as_number(first), as_number(second)
    bits = max(first.denominator.bit_length(), second.denominator.bit_length())
    bits = max(bits, first.numerator.bit_length(), second.numerator.bit_length())
    spend((bits // 1000) ** 2)  # the greatest common divisor takes quadratic time
    return first, second


def _power(base: Value, exponent: Value) -> Value:
    context = arithmetic()
    if isinstance(exponent, Fraction):
        if isinstance(base, Fraction) and exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent.numerator) * bits <= _MAX_BITS:
                return base**exponent.numerator
        if exponent.denominator % 2 and exponent.denominator > 1 and is_real(base) and real(base) < 0:
            root = as_number(-real(base)) ** as_number(exponent)  # the real root, as schools take it
            return -root if exponent.numerator % 2 else root
    base, exponent = as_number(base), as_number(exponent)
    if base and not context.isinf(base) and abs(exponent) * (abs(context.mag(base)) + 1) > _MAX_BITS:
        raise OverflowError("power too large")
    return base**exponent


def _arrangements(items: Value, taken: Value) -> Value:
    if items.denominator != 1 or taken.denominator != 1 or not 0 <= taken <= min(items, 1500):
        raise ValueError("arrangements of anything but small whole numbers")
    if int(taken) * int(items).bit_length() > _MAX_BITS:
        raise OverflowError("too many arrangements")
    spend(20)
    return Fraction(math.perm(int(items), int(taken)))


def _natural(value: Value) -> Value:
    if value == 0:
        raise ValueError("logarithm of zero")
    return arithmetic().log(as_number(value))


def _floor(value: Value) -> Value:
    if not isinstance(value, Fraction):
        value = int(arithmetic().floor(real(value)))
    return Fraction(math.floor(value))


def _function(name: str, value: Value) -> Value:
    context, number = arithmetic(), as_number(value)
    if _MAX_MAGNITUDE < context.mag(number) < context.inf:
        raise OverflowError("argument too large")
    return getattr(context, name)(number)


_CONSTANTS: dict[str, Callable[["MPContext"], Value]] = {
    **{"pi": lambda context: +context.pi, "e": lambda context: +context.e},
    **{"i": lambda context: context.mpc(0, 1), "infty": lambda context: context.inf},
}
_OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": lambda a, b: operator.add(*_alike(a, b)),
    "subtract": lambda a, b: operator.sub(*_alike(a, b)),
    "multiply": lambda a, b: operator.mul(*_alike(a, b)),
    "divide": lambda a, b: operator.truediv(*_alike(a, b)),
    "power": _power,
    "root": lambda radicand, degree: _power(radicand, 1 / degree),
    "negate": lambda a: -a,
    "abs": abs,
    "factorial": lambda count: _arrangements(count, count),
    "binomial": lambda items, taken: _arrangements(items, taken) / _arrangements(taken, taken),
    "arrangements": _arrangements,
    "degree": lambda a: as_number(a) * arithmetic().pi / 180,
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
    **dict.fromkeys(("log", "lg"), lambda a, base=Fraction(10): _natural(a) / _natural(base)),
    "ln": _natural,
    "max": max,
    "min": min,
    "exp": lambda a: _power(arithmetic().e, a),
}
for _name in "sin cos tan cot sec csc sinh cosh tanh asin acos atan acot".split():  # noqa: SIM905
    _OPERATIONS[re.sub("^a", "arc", _name)] = partial(_function, _name)
_CHEAP = {"add", "subtract", "multiply", "divide", "negate", "abs", "max", "min"}

# Of Newton's method: complex, as real starts do not reach complex roots.
_STARTS = ("0.7+0.4j", "-1.3+0.9j", "2.1-1.7j", "-0.4-2.3j", "3.9+0.1j", "-5.2+0.2j")


def same_curve(first: Node, second: Node) -> bool | None:
    """Whether `first` = 0 and `second` = 0 have the same solutions; None if no point was found."""
    names = first.symbols() | second.symbols()
    if first.symbols() != second.symbols():
        return False
    if _proportional(first, second, names):
        return True
    # Solve each for one symbol, with the others at fixed points, and try the solutions in the other.
    solutions = 0
    for variable in sorted(names):
        for point in sample_points(names - {variable}, count=3):
            for one, other in ((first, second), (second, first)):
                places = _zeros(one, variable, point)
                solutions += len(places)
                if not _all_zero(other, places, variable, point):
                    return False
    return True if solutions >= 2 else None


def _proportional(first: Node, second: Node, names: set[str]) -> bool:
    ratios = []  # of an equation multiplied by a constant, the common case
    for point in sample_points(names, count=5):
        with suppress(Undefined):
            a, b = evaluate(first, point), evaluate(second, point)
            if b == 0:
                return False
            ratios.append(as_number(a) / as_number(b))
    return len(ratios) >= 3 and ratios[0] != 0 and all(close(ratios[0], ratio) for ratio in ratios[1:])


def _zeros(node: Node, variable: str, point: dict[str, Fraction]) -> list[Value]:
    context = arithmetic()
    found = []
    for start in _STARTS:
        place = context.mpmathify(start)
        with suppress(Undefined, ZeroDivisionError):
            for _ in range(80):
                step = _newton_step(node, variable, point, place)
                place = place - step
                if abs(place) > 10**6:  # on its way to a root at infinity
                    break
                if abs(step) < context.mpf(10) ** -50 * (1 + abs(place)):
                    found.append(place)
                    break
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
    small = arithmetic().mpf(10) ** -20
    with suppress(Undefined, ZeroDivisionError):
        steps = [(place, _newton_step(node, variable, point, place)) for place in places]
        return all(abs(step) <= small * (1 + abs(place)) for place, step in steps)
    return False
