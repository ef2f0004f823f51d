"""Check an answer by putting it into the equations of the question, without a gold answer.

Only a question that asks for its own unknowns and nothing else is checked: solve, find x, 解方程.
"""

import re
from contextlib import suppress
from fractions import Fraction

from megatron_mathcpt.answers.expression import STEPS, Node, NotAnExpression, OutOfSteps, parse_expression
from megatron_mathcpt.answers.grader import MAX_CHARACTERS, MAX_STEPS, Status
from megatron_mathcpt.answers.normalize import normalize
from megatron_mathcpt.answers.region import read_equation, read_group, read_list, split_top
from megatron_mathcpt.answers.roots import NotAllKnown, real_zeros
from megatron_mathcpt.answers.value import Undefined, Value, close, evaluate

# Formulas; without signs around them, what has an equals sign and no word.
_FORMULA = re.compile(
    r"\$\$(.{1,400}?)\$\$|\$([^$]{1,300})\$|\\\[(.{1,400}?)\\\]|\\\((.{1,300}?)\\\)"
    r"|((?<![A-Za-z])(?:[a-z](?![A-Za-z])|[\d.+\-*/^()=×÷−]|(?<=\S) (?=\S)){1,200})",
    re.DOTALL,
)
_SOME = r"(?:the |this |following |given |system |of |(?:linear |quadratic )?equations? |simultaneous |: )*"
_ALL = rf"{_SOME}#(?:[,;.，；]?(?: and| 和)? ?#)*"
_FOR = r"(?:for )?@(?:(?:,? and|,) ?@)*"
_OF = r"(?:all )?(?:the )?(?:real |possible )*(?:numbers? |values? |solutions? |roots? )?(?:of |for |to )?"
_THAT = r"if|when|given(?: that)?|such that|so that|in|for which|that satisf\w+|satisfying"
_QUESTION = r"what (?:is|are)|find|determine|compute|solve"
_ASKED = re.compile(
    rf"solve {_ALL} ?(?:{_FOR})?|solve {_FOR}(?:[:,]? ?(?:{_THAT}|where)? ?){_ALL}"
    rf"|(?:if|given(?: that)?|when|suppose(?: that)?) {_ALL},? (?:then )?(?:{_QUESTION}) {_OF}{_FOR}"
    rf"|(?:{_QUESTION}) {_OF}@ ?(?:{_THAT}) {_ALL}|find {_OF}{_ALL}"
    r"|(?:what|which|for what) (?:real )?(?:values?|numbers?)(?: of)? @ "
    rf"(?:is|are|does|do|satisf(?:y|ies)|makes?|will make)? ?{_ALL}(?: true)?"
    r"|(?:求?解(?:下列|以下|这个)?方程组?|求(?:下列)?方程组?|方程组?|若|如果|已知)[:： ]*#(?:[,，;；和 ]*#)*"
    r" ?(?:的解|[,，]? ?(?:则|求|那么)? ?(?:未知数)? ?@ ?的?值?)?[是为=等于多少]*",
    re.I,
)
_FORMAT = re.compile(r"(?:express|write|give|enter)[^.]*(?:answers?|fraction|form|solutions?)[^.]*\.?", re.I)


def satisfies(question: str, answer: str) -> Status:
    """Whether the numbers of `answer` solve the equations of `question`; ungraded where that is not certain.

    "correct" says that all given numbers are solutions and, where all real solutions of one equation in one
    unknown are known, that none is left out.
    """
    if max(len(question), len(answer)) > MAX_CHARACTERS:
        return "ungraded"
    limit = STEPS.set([MAX_STEPS])
    try:
        equations = _equations(question)
        names = sorted(set().union(*(node.symbols() for node in equations)))
        points = [_point(item, names) for item in _items(answer, names)]
        if not names or not points or any(len(point) != len(names) for point in points):
            return "ungraded"
        if not all(close(evaluate(node, point), Fraction(0)) for node in equations for point in points):
            return "wrong"
        return "correct" if _is_complete(equations, names, points) else "ungraded"
    except (NotAnExpression, OutOfSteps, Undefined, ArithmeticError, ValueError, TypeError):
        return "ungraded"
    finally:
        STEPS.reset(limit)


def _equations(question: str) -> list[Node]:
    """Left minus right side of each equation, if the question asks for just their unknowns."""
    found: list[Node] = []
    asked: set[str] = set()

    def placeholder(formula: re.Match[str]) -> str:
        text = next(part for part in formula.groups() if part)
        if not (inside := text.strip(" .,;:\n")):
            return text
        if re.fullmatch("[a-z]", inside):
            asked.add(inside)
            return f"{' ' * text[:1].isspace()}@{text.strip()[1:]}{' ' * text[-1:].isspace()}"
        if inside.count("=") == 0 and formula[5]:
            return text
        bare = re.sub(r"\\(?:begin|end)\{(?:align\*?|cases|aligned|array)\}(?:\{\w*\})?", "", inside)
        rows = re.split(r"\\\\|&?,\s|\n", bare)
        found.extend(_difference(row.replace("&", "")) for row in rows if row.strip())
        return "#" + "." * text.rstrip().endswith(".")

    skeleton = re.sub(r"\s+", " ", _FORMULA.sub(placeholder, _FORMAT.sub("", question))).strip(" .?？。:：")
    symbols = set().union(*(node.symbols() for node in found))
    for_all = symbols == asked if asked else len(symbols) == len(found)
    if not (found and for_all and _ASKED.fullmatch(skeleton)):
        raise NotAnExpression("not a question for the unknowns of equations")
    return found


def _difference(text: str) -> Node:
    sides = normalize(text).split("=")
    if len(sides) != 2 or re.search(r"[<>≤≥]|\\[lg]e|\\ne|\\circ|\\pmod|\\equiv|[A-Za-z]\(", text):
        raise NotAnExpression(text)
    left, right = map(parse_expression, sides)
    return Node("subtract", (left, right))


def _items(answer: str, names: list[str]) -> list[list[str]]:
    """The parts of each solution in an answer: x = 2 or x = 3; x = 2, y = 3; (2, 3), (3, 2)."""
    text = normalize(answer)
    if len(names) < 2:
        return [[item] for item in read_list(text)]
    if group := read_group(text):
        return [list(group.items)]
    pieces = split_top(text, r",|;|(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
    if all(map(read_group, pieces)):
        return [list(group.items) for piece in pieces if (group := read_group(piece))]
    return [pieces] if all(map(read_equation, pieces)) else []


def _point(parts: list[str], names: list[str]) -> dict[str, Value]:
    """The value of each symbol; by name, or in alphabetical order."""
    point: dict[str, Value] = {}
    for name, part in zip(names, parts, strict=True):
        equation = read_equation(part)
        if (equation is None) != ("=" not in part) or re.search(r"\d\.\d", part):  # perhaps rounded
            raise NotAnExpression(part)
        own, value = (equation.name, equation.right) if equation else (name, part)
        point[own] = evaluate(parse_expression(value))
    if set(point) != set(names):
        raise NotAnExpression("not the unknowns")
    return point


def _is_complete(equations: list[Node], names: list[str], points: list[dict[str, Value]]) -> bool:
    if len(names) > 1 or len(equations) > 1:
        return True
    (name,), (node,) = names, equations
    with suppress(NotAllKnown):
        for zero in real_zeros(node, name, {}):
            with suppress(Undefined):  # a pole
                root = close(evaluate(node, {name: zero}), Fraction(0))
                if root and not any(close(zero, point[name]) for point in points):
                    return False
    return True
