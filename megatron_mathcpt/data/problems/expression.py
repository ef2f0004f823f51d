"""Exact arithmetic on the steps of a solution: `+ - * / **` and `sqrt` of perfect squares, nothing else."""

import ast
import functools
import math
import operator
import re
from collections.abc import Mapping
from fractions import Fraction

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def evaluate(expression: str, values: Mapping[str, Fraction]) -> Fraction:
    """The exact value of `expression` with the names in `values`.

    Raises ValueError for any other construct than the operators above, and for a root that is not rational.
    """
    return _value(_parse(expression), values)


def substitute(expression: str, values: Mapping[str, Fraction]) -> str:
    """`expression` as it is written in a solution: names replaced by their numbers."""

    def number(match: re.Match[str]) -> str:
        return _operand(values[match[0]]) if match[0] in values else match[0]

    return re.sub(r"[a-z]\w*", number, expression).replace("**", "^")


def exact(value: Fraction) -> str:
    """A whole number, or a fraction in lowest terms as `3/4`."""
    return str(value)


def _operand(value: Fraction) -> str:
    """`value` as part of an expression; what is negative or a fraction needs its brackets."""
    return exact(value) if value >= 0 and value.denominator == 1 else f"({exact(value)})"


@functools.cache
def _parse(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _value(node: ast.expr, values: Mapping[str, Fraction]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return Fraction(_OPERATORS[type(op)](_value(left, values), _value(right, values)))
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument]):
            return _root(_value(argument, values))
    raise ValueError(f"{ast.unparse(node)}: not part of the language of steps")


def _root(value: Fraction) -> Fraction:
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError(f"sqrt({value}) is not a rational number")
    return root
