"""All real zeros of an expression of one symbol, or none if not all are known.

Exact in kind: polynomials with rational coefficients are made free of multiple roots first, the others are
left alone if two roots are too near to be separated. |p|, roots, powers and logarithms are solved by
substitution.
More places than the zeros may be returned (poles, ends of the domain, zeros of a branch of |p|), never fewer.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from itertools import zip_longest

from megatron_mathcpt.answers.expression import Node, spend
from megatron_mathcpt.answers.value import Undefined, Value, arithmetic, as_number, evaluate, is_real, real

_MAX_DEGREE = 20
_MAX_SUBSTITUTIONS = 6
_RATIONAL = {"symbol", "add", "subtract", "multiply", "divide", "negate"}
Polynomial = list[Value]  # from the constant term upwards


class NotAllKnown(ValueError):
    """The expression may have zeros that are not found."""


def real_zeros(node: Node, variable: str, point: Mapping[str, Value], depth: int = 0) -> list[Value]:
    """Return at least all real zeros, and all places where the sign may change; raises `NotAllKnown`."""
    spend(20)
    if depth > _MAX_SUBSTITUTIONS:
        raise NotAllKnown
    inner = _innermost(node, variable)
    if inner is None:
        top, bottom = _ratio(node, variable, point)
        return [*_polynomial_zeros(top), *_polynomial_zeros(bottom)]
    if inner.operator == "abs":
        signs = (inner.arguments[0], Node("negate", inner.arguments))
        branches = (inner.arguments[0], *(_replace(node, inner, signed) for signed in signs))
        return [zero for each in branches for zero in real_zeros(each, variable, point, depth + 1)]
    # Of one function of the variable: solve for its value first.
    unknown = "\\unknown" + str(depth)
    outer = _replace(node, inner, Node("symbol", value=unknown))
    argument, inverse = _inverse(inner, variable, point)
    if variable in outer.symbols():
        # The variable is left: solve for the root, of which the variable is a function.
        place = _under_root(inner, variable, unknown, point)
        outer = _replace(outer, Node("symbol", value=variable), place)
        zeros = [Fraction(0), *real_zeros(outer, unknown, point, depth + 1)]
        return [evaluate(place, {unknown: zero}) for zero in zeros]
    found = real_zeros(argument, variable, point, depth + 1)  # an end of the domain
    for value in real_zeros(outer, unknown, point, depth + 1):
        with suppress(Undefined):
            place = Node("number", value=inverse(value))
            found += real_zeros(Node("subtract", (argument, place)), variable, point, depth + 1)
    return found


def _under_root(inner: Node, variable: str, unknown: str, point: Mapping[str, Value]) -> Node:
    """Return x for u = \\sqrt{ax + b}, which is (u^2 - b)/a."""
    top, bottom = _ratio(inner.arguments[0], variable, point)
    squared = inner.operator == "root" and evaluate(inner.arguments[1], point) == 2
    if not squared or len(top) != 2 or len(bottom) != 1:
        raise NotAllKnown
    shift, slope = (Node("number", value=value / bottom[0]) for value in top)
    square = Node("power", (Node("symbol", value=unknown), Node("number", value=Fraction(2))))
    return Node("divide", (Node("subtract", (square, shift)), slope))


def _innermost(node: Node, variable: str) -> Node | None:
    """Return a function of the variable that has no other inside; None for a ratio of polynomials."""
    for part in reversed(node.walk()):
        if variable in part.symbols() and part.operator not in _RATIONAL and not _is_power(part, variable):
            return part
    return None


def _is_power(node: Node, variable: str) -> bool:
    exponent = node.arguments[1] if node.operator == "power" else None
    if exponent is None or exponent.symbols():
        return False
    with suppress(Undefined):
        value = evaluate(exponent)
        return isinstance(value, Fraction) and value.denominator == 1 and abs(value) <= _MAX_DEGREE
    return False


def _replace(node: Node, old: Node, new: Node) -> Node:
    if node == old:
        return new
    return node._replace(arguments=tuple(_replace(part, old, new) for part in node.arguments))


def _inverse(node: Node, variable: str, point: Mapping[str, Value]) -> tuple[Node, Callable[[Value], Value]]:
    """Return the argument of a function of the variable, and the inverse function."""
    name, first, *others = node.operator, *node.arguments

    def constant(part: Node) -> Value:
        if variable in part.symbols():
            raise NotAllKnown
        return evaluate(part, point)

    def apply(operator: str, *values: Value) -> Value:
        return evaluate(Node(operator, tuple(Node("number", value=value) for value in values)))

    with suppress(Undefined):
        if name == "root" or (name == "power" and variable in first.symbols()):
            one, exponent = Fraction(1), constant(others[0])
            exponent = exponent if name == "power" else apply("divide", one, exponent)
            return first, lambda value: real(apply("power", value, apply("divide", one, exponent)))
        if name in ("power", "exp"):
            base = constant(first) if name == "power" else arithmetic().e
            argument = others[0] if name == "power" else first
            return argument, lambda value: real(apply("log", value, base))
        if name in ("log", "lg", "ln"):
            base = constant(others[0]) if others else Fraction(10) if name != "ln" else arithmetic().e
            return first, lambda value: real(apply("power", base, value))
    raise NotAllKnown


def _ratio(  # noqa: PLR0911 - one operation a return
    node: Node, variable: str, point: Mapping[str, Value]
) -> tuple[Polynomial, Polynomial]:
    """Return numerator and denominator as polynomials of the variable."""
    spend(5)
    if variable not in node.symbols():
        with suppress(Undefined):
            return [evaluate(node, point)], [Fraction(1)]
        raise NotAllKnown
    if node.operator == "symbol":
        return [Fraction(0), Fraction(1)], [Fraction(1)]
    if node.operator == "power":
        exponent = int(evaluate(node.arguments[1]))
        top, bottom = _ratio(node.arguments[0], variable, point)
        powers: list[Polynomial] = [[Fraction(1)], [Fraction(1)]]
        for _ in range(abs(exponent)):
            powers = [_times(powers[0], top), _times(powers[1], bottom)]
        return (powers[0], powers[1]) if exponent >= 0 else (powers[1], powers[0])
    parts = [_ratio(part, variable, point) for part in node.arguments]
    (a, b), (c, d) = parts[0], parts[-1]
    if node.operator == "negate":
        return _times([Fraction(-1)], a), b
    if node.operator == "multiply":
        return _times(a, c), _times(b, d)
    if node.operator == "divide":
        return _times(a, d), _times(b, c)
    sign = [Fraction(1 if node.operator == "add" else -1)]
    one, other = _alike(_times(a, d), _times(sign, _times(b, c)))
    return [x + y for x, y in zip_longest(one, other, fillvalue=one[0] * 0)], _times(b, d)


def _times(first: Polynomial, second: Polynomial) -> Polynomial:
    if len(first) + len(second) > _MAX_DEGREE + 2:
        raise NotAllKnown
    spend(len(first) * len(second))
    first, second = _alike(first, second)
    found: Polynomial = [first[0] * 0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            found[i + j] += a * b
    return found


def _alike(*polynomials: Polynomial) -> list[Polynomial]:
    if all(isinstance(value, Fraction) for each in polynomials for value in each):
        return list(polynomials)
    return [[as_number(value) for value in each] for each in polynomials]


def _polynomial_zeros(found: Polynomial) -> list[Value]:
    context = arithmetic()
    exact = all(isinstance(value, Fraction) for value in found)
    if not exact and not all(is_real(value) for value in found):
        raise NotAllKnown
    small = 0 if exact else max(map(abs, found)) * context.mpf(10) ** -40
    while found and abs(found[-1]) <= small:
        found = found[:-1]
    if len(found) < 2:
        return []
    if exact:
        derivative = [index * value for index, value in enumerate(found)][1:]
        found, _ = _divided(found, _common(found, derivative))
    coefficients = [real(value) for value in reversed(found)]
    spend(150 * len(found))
    try:
        zeros = context.polyroots(coefficients, maxsteps=120, extraprec=120, error=False)
    except (context.NoConvergence, ArithmeticError, ValueError) as error:
        raise NotAllKnown from error
    for index, zero in enumerate(zeros):
        if any(abs(zero - other) < context.mpf(10) ** -12 * (1 + abs(zero)) for other in zeros[:index]):
            raise NotAllKnown
    reals = [zero for zero in zeros if abs(context.im(zero)) < context.mpf(10) ** -25 * (1 + abs(zero))]
    return [_exact(context.re(zero), found) if exact else context.re(zero) for zero in reals]


def _exact(zero: Value, polynomial: Polynomial) -> Value:
    """Return the rational number that is this zero, if there is one."""
    near = Fraction(int(zero * 2**120), 2**120).limit_denominator(10**9)
    value = Fraction(0)
    for coefficient in reversed(polynomial):
        value = value * near + coefficient
    return near if value == 0 else zero


def _common(first: Polynomial, second: Polynomial) -> Polynomial:
    """Return the greatest common divisor of two polynomials with rational coefficients."""
    while second:
        first, second = second, _divided(first, second)[1]
    return first


def _divided(first: Polynomial, second: Polynomial) -> tuple[Polynomial, Polynomial]:
    quotient: Polynomial = []
    first = list(first)
    while len(first) >= len(second):
        spend(len(second) + max(abs(first[-1].numerator).bit_length() // 500, 0))
        factor = first[-1] / second[-1]
        quotient.append(factor)
        for index in range(1, len(second) + 1):
            first[-index] -= factor * second[-index]
        first.pop()
    while first and first[-1] == 0:
        first.pop()
    return quotient[::-1], first
