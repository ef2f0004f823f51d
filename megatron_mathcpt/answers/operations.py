"""Which operations and methods a solution uses: two solutions may differ in words only, or in their way.

An operation is a sum or product of the numbers in it (a difference has a negative term, a quotient an inverse
factor), a power or a root. A sum of an earlier sum counts as one, so the order of its terms does not matter.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import regex as re

from megatron_mathcpt.answers.equations import exact_value, parsed_side
from megatron_mathcpt.answers.expression import Node
from megatron_mathcpt.answers.spellings import RUN, plain, respelled

Operation = tuple[str, tuple[Fraction, ...]]
_KINDS = {"add": "sum", "subtract": "sum", "multiply": "product", "divide": "product"}
_TOTALS: dict[str, Callable[[list[Fraction]], Fraction | int]] = {"sum": sum, "product": math.prod}
_METHODS = {
    "factoring": r"\bfactor(?:ing|ed|iz\w+|is\w+)\b|\bfactors? (?:as|into|the)\b|因式分解|提取公因式",
    "substitution": r"\bsubstitut\w+|\bplug(?:ging)?\b|代入",
    "elimination": r"\beliminat\w+|\b(?:add|subtract)(?:ing)? (?:the|these) (?:two )?equations|消元|消去",
    "completing the square": r"\bcomplet\w+ the square|配方",
    "quadratic formula": r"\bquadratic formula|求根公式|公式法",
    "Vieta": r"\bvieta|韦达",
    "Pythagoras": r"\bpythag\w+|勾股",
    "similar triangles": r"\bsimilar(?:ity)?\b|\\sim(?![a-z])|相似",
    "trigonometry": r"\\(?:sin|cos|tan)(?![a-z])|\b(?:co)?sines?\b|正弦|余弦|正切",
    "coordinates": r"\bcoordinates?\b|坐标",
    "counting on": r"\bcount(?:ing|ed)? (?:on|up|down|back|by)\b|接着数|往[前后]数|数数",
    "table or list": r"\b(?:table|chart|list(?:ing|ed)?|enumerat\w+)\b|\\begin\{tabular\}|列表|列举|枚举",
    "proportion": r"\bunit (?:price|rate|cost)|\bproportion\w*|\bcross[- ]multipl\w+|\bratio\b|比例|单价",
    "working backwards": r"\bwork\w* backwards?\b|倒推|逆推|还原",
    "equation": r"\blet \$?[a-z]\b|\bequation|设\s?\$?[a-z]|方程",
    "cases": r"\bcasework\b|\bcase (?:1|one|i)\b|分类讨论|分情况|情况一",
    "complement": r"\bcomplement\w*|补集|反面",
    "inclusion and exclusion": r"\binclusion|容斥",
    "induction": r"\binduction\b|归纳法",
    "contradiction": r"\bcontradict\w+|反证",
    "symmetry": r"\bsymmetr\w+|对称",
    "calculus": r"\bdifferentiat\w+|\bderivative|\bintegrat\w+|求导|导数|积分",
    "picture": r"\bdraw(?:ing|n)?\b|\b(?:number line|bar model|diagram)\b|画图|线段图|数轴",
    "trial": r"\bguess\b|\btrial and error|试算|尝试",
    "taking apart": r"\b(?:break|split|decompos)\w*\b|凑整|拆分|拆成",
}
_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _METHODS.items()}


def operations(text: str) -> frozenset[Operation]:
    """The operations in the equations between numbers of a solution, and by name the methods it speaks of."""
    found: list[Operation] = []
    for run in RUN.finditer(respelled(text)[0]):
        if re.search("[=≈≟]", run[0]):
            for side in re.split("[=≈≟]", plain(run[0])):
                if len(side) <= 120 and (node := parsed_side(side.strip(" +*/"))):
                    found += [each for each in _of_tree(node) if each not in found]
    methods = {(name, ()) for name, pattern in _PATTERNS.items() if pattern.search(text)}
    return frozenset(_merged(found)) | methods


def operation_similarity(first: str, second: str) -> float | None:
    """Shared operations of two solutions by all of theirs, 0 to 1; None if one of them has none."""
    one, other = operations(first), operations(second)
    return len(one & other) / len(one | other) if one and other else None


def _of_tree(node: Node, outer: str = "") -> list[Operation]:
    """The operations of a tree, the inner ones first."""
    kind = _KINDS.get(node.operator, node.operator)
    found = [each for part in node.arguments for each in _of_tree(part, kind)]
    if node.arguments and kind not in (outer, "negate"):
        parts = _operands(node, kind) if kind in _TOTALS else [exact_value(a) for a in node.arguments]
        values = [value for value in parts if value is not None and (kind != "product" or value != 1)]
        if len(values) > (kind in _TOTALS) and None not in parts:
            found.append((kind, tuple(sorted(values) if kind in _TOTALS else values)))
    return found


def _operands(node: Node, kind: str) -> list[Fraction | None]:
    """The terms of a sum, or the factors of a product."""
    if _KINDS.get(node.operator) != kind:
        return [exact_value(node)]
    first, second = (_operands(part, kind) for part in node.arguments)
    if node.operator == "subtract":
        second = [None if value is None else -value for value in second]
    if node.operator == "divide":
        second = [1 / value if value else None for value in second]
    return [*first, *second]


def _merged(found: list[Operation]) -> list[Operation]:
    """Put an earlier sum or product in the place of its result: 3 + 4 = 7, 7 + 5 = 12 is 3 + 4 + 5."""
    results: dict[tuple[object, ...], Operation] = {}
    for kind, values in found:
        terms = list(values)
        for value in values:
            if earlier := results.pop((kind, value), None):
                terms.remove(value)
                terms += earlier[1]
        if kind in _TOTALS:
            results[kind, _TOTALS[kind](terms)] = (kind, tuple(sorted(terms)))
        else:
            results[kind, values] = (kind, values)
    return list(results.values())
