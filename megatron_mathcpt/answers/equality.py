"""Rules that compare two normalised answers by their kind: equal, different, or None for undecided."""

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain

from megatron_mathcpt.answers import forms, region
from megatron_mathcpt.answers.expression import Node, NotAnExpression, parse_expression, spend
from megatron_mathcpt.answers.normalize import is_words, same_time, same_words
from megatron_mathcpt.answers.piecewise import same_cases
from megatron_mathcpt.answers.units import Unit, split_unit
from megatron_mathcpt.answers.value import same_curve, same_value

UNDECIDED = "value too large or undefined"
Rule = Callable[[str, str], forms.Reduced]
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# At the end of an answer: the set of the values of its parameter.
_PARAMETER = re.compile(
    r"\s*+(?:[,(]\s*+)?(?:\(\s*+)?(?P<name>[kmn])\s*\\in\s*(?:\\math[a-z]+\s*)?\{?\s*(?P<set>[ZN])\s*\}?"
    r"(?:[*+^{}_\s]|\\cdot)*\)?\s*$"
)
_FUNCTIONS_OF = {"y", "f(x)", "g(x)", "h(x)", "f(t)", "f(n)", "p(x)", "P(x)", "q(x)"}


def equivalent(gold: str, prediction: str, *, ordered: bool = False) -> tuple[bool | None, str]:
    """Return the verdict and the rule that decided; `ordered` compares lists in order (blanks of a cloze)."""
    spend(20 + (len(gold) + len(prediction)) // 4)
    # White space between two digits separates two numbers; elsewhere it has no meaning.
    first, second = (re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text) for text in (gold, prediction))
    if first == second:
        return True, "same text"
    pairs = (gold, prediction), (prediction, gold)
    gold, prediction = (forms.named(forms.abbreviated(*pair)) for pair in pairs)
    # The first rule that decides wins, so special notations come before the general ones that would misread
    # them: (1)(3) as a product, 4:30 as a ratio, 3 < x < 5 as an equation.
    rules: list[tuple[str, Rule]] = [
        ("alternatives", _alternatives),
        ("approximation", lambda a, b: forms.rewritten(a, b, forms.exact)),
        ("label", forms.labelled),
        ("parameter", _families),
        ("clock time", same_time),
        ("statements", forms.statements),
        ("words", _words),
        ("region", _regions),
        ("congruence", forms.congruences),
        ("cases", same_cases),
        ("determinant", lambda a, b: forms.rewritten(a, b, forms.expanded)),
        ("matrix", _matrices),
        ("mixed number", forms.mixed_numbers),
        ("list", lambda a, b: _lists(a, b, ordered=ordered)),
        ("group", _groups),
        ("ratio", _ratios),
        ("equation", _equations),
        ("value", _quantities),
    ]
    for name, rule in rules:
        verdict = rule(gold, prediction)
        if isinstance(verdict, tuple):
            return same(*verdict), name
        if verdict is not None:
            return verdict, name
    parsed = all(_parse(split_unit(text)[0]) for text in (gold, prediction))
    return None, UNDECIDED if parsed else "outside the rules"


def same(gold: str, prediction: str) -> bool | None:
    return equivalent(gold.strip(), prediction.strip())[0]


def _alternatives(gold: str, prediction: str) -> bool | None:
    parts = [part.strip(" $") for part in re.split(r"#\s*#", gold)]
    return any(same(part, prediction) for part in parts) if len(parts) > 1 else None


def _families(gold: str, prediction: str) -> bool | None:
    """Compare families with whole-number parameters, x = k\\pi, k \\in Z."""
    (first, stated), (second, others) = map(_split_parameters, (gold, prediction))
    if len({domain for _, domain in stated | others}) != 1:
        return False if stated | others else None
    for body, names in ((first, stated or others), (second, others or stated)):
        if not all(name in re.sub(r"\\[A-Za-z]+", "", body) for name, _ in names):
            return False  # 1, k \\in Z is no family, and not 1
    if stated and others and stated != others:
        return None
    renumbered = [second]
    for name, domain in sorted(stated or others):
        symbol = re.compile(rf"(?<![\\A-Za-z]){name}(?![A-Za-z])")
        # Over all integers, k, k + 1 and -k number the same family.
        more = [f"({sign}{name}{shift:+d})" for sign in ("", "-") for shift in range(-2, 3)]
        forms = [name, *(more if domain == "Z" else ())]
        spend(len(renumbered) * len(forms))
        renumbered = [symbol.sub(form, body) for body in renumbered for form in forms]
    return _any(same(first, body) for body in renumbered)


def _split_parameters(text: str) -> tuple[str, set[tuple[str, str]]]:
    """Split an answer into its body, and the names and sets of its parameters."""
    stated = set()
    while found := _PARAMETER.search(text):
        stated.add((found["name"], found["set"]))
        text = text[: found.start()]
    return text, stated


def _ratios(gold: str, prediction: str) -> bool | None:
    """Compare ratios of three and more numbers, 3:4:5; one of two is a fraction."""
    bare = [re.sub(r"^[^=\d]+:[^=\d]+=", "", text) for text in (gold, prediction)]
    if (bare[0] == gold) != (bare[1] == prediction):  # what is in this ratio: a:b = 3:2
        return same(*bare)
    terms = [region.split_top(text, ":") for text in (gold, prediction)]
    if max(map(len, terms)) < 3:
        return None
    if len(terms[0]) != len(terms[1]):
        return False
    pairs = [(_parse(a), _parse(b)) for a, b in zip(*terms, strict=True)]
    nodes = [(a, b) for a, b in pairs if a and b]
    if len(nodes) < len(pairs):
        return None
    # Cross-multiplied with the first pair: proportional ratios are equal.
    one, two = nodes[0]
    return _all(same_value(Node("multiply", (a, two)), Node("multiply", (b, one))) for a, b in nodes)


def _words(gold: str, prediction: str) -> bool | None:
    first, second = is_words(gold), is_words(prediction)
    if first and second:
        return same_words(gold, prediction)
    return False if first or (second and re.search(r"\d|\\", gold)) else None


def _regions(gold: str, prediction: str) -> bool | None:
    if not (region.looks_like_region(gold) or region.looks_like_region(prediction)):
        return None
    first, second = region.read_region(gold), region.read_region(prediction)
    if first and second:
        return region.same_region(first, second)
    # A side that is no region but can be parsed is something else.
    other = prediction if first else gold
    return False if (first or second) and _parse(split_unit(other)[0]) else None


def _matrices(gold: str, prediction: str) -> bool | None:
    first, second = region.read_matrix(gold), region.read_matrix(prediction)
    if first is None and second is None:
        return None
    one, two = first or _as_rows(gold), second or _as_rows(prediction)
    if not one or not two:
        other = gold if first is None else prediction
        return False if region.read_group(other) or _parse(split_unit(other)[0]) else None
    shapes = [[len(row) for row in rows] for rows in (one, two)]
    # A vector may be written as a point, so a row may be compared with a column.
    vectors = (first is None or second is None) and all(len(n) == 1 or set(n) == {1} for n in shapes)
    if shapes[0] != shapes[1] and not (vectors and sum(shapes[0]) == sum(shapes[1])):
        return False
    return _all(map(same, chain(*one), chain(*two)))


def _as_rows(text: str) -> tuple[tuple[str, ...], ...] | None:
    group = region.read_group(text)
    if not group or group.is_set:
        return None
    rows = tuple(row.items for item in group.items if (row := region.read_group(item)))
    return rows if len(rows) == len(group.items) else (group.items,)


def _lists(gold: str, prediction: str, *, ordered: bool) -> bool | None:
    first, second = region.read_list(gold), region.read_list(prediction)
    if ordered:
        separators = [";" if ";" in text else region.LIST_SEPARATOR for text in (gold, prediction)]
        first, second = map(region.split_top, (gold, prediction), separators)
    sizes = {len(first), len(second)}
    if _THOUSANDS.fullmatch(gold) or _THOUSANDS.fullmatch(prediction):
        # 24,112 may be one number or two: equal if they are equal as one, else left to the later rules.
        bare = [text.replace(",", "") for text in (gold, prediction)]
        numbers = [Fraction(text) for text in bare if re.fullmatch(r"-?\d+(\.\d+)?", text)]
        if len(numbers) == 2 and numbers[0] == numbers[1]:
            return True
        if 1 in sizes:
            return None
        if any(_THOUSANDS.fullmatch(text) and ",0" in text for text in (gold, prediction)):
            return False  # 1,000 is no list
    if sizes == {1}:
        return None
    return _same_items(first, second, ordered=ordered or ";" in gold)


def _same_items(first: list[str], second: list[str], *, ordered: bool) -> bool | None:
    groups = [region.read_group(items[0]) if len(items) == 1 else None for items in (first, second)]
    for group, items in ((groups[0], second), (groups[1], first)):
        if group and len(items) > 1:  # 1, 3 for {1, 3}, or for the point (1, 3)
            return _same_sequence(group.items, items, ordered=not group.is_set)
    names = [_names(items) for items in (first, second)]
    # x = 1, y = 2 is compared by name. x_1 and x_2 are two values of one unknown.
    stems = [[re.sub(r"_.*", "", name) for name in each] for each in names]
    if all(names) and set(names[0]) == set(names[1]):
        if len(set(names[0])) == len(first) == len(second):
            other = dict(zip(names[1], second, strict=True))
            return _all(same(item, other[name]) for name, item in zip(names[0], first, strict=True))
    elif all(names) and len({*stems[0], *stems[1]}) == 1:  # values of one unknown
        first, second = ([item.split("=")[-1] for item in items] for items in (first, second))
    elif all(names):
        return False
    distinct = any(len(each) > 1 and len(set(each)) == len(each) for each in stems)
    return _same_sequence(first, second, ordered=ordered or distinct)


def _names(items: list[str]) -> list[str]:
    equations = [region.read_equation(item) for item in items]
    return [equation.name for equation in equations if equation and equation.name] if all(equations) else []


def _same_sequence(first: Sequence[str], second: Sequence[str], *, ordered: bool) -> bool | None:
    if ordered:
        return len(first) == len(second) and _all(map(same, first, second))
    found = _all(_any(same(a, b) for b in second) for a in first)
    return _all(_any(same(a, b) for a in first) for b in second) if found else found


def _all(verdicts: Iterable[bool | None], unless: bool = False) -> bool | None:
    undecided = False
    for verdict in verdicts:  # no further than the first that decides: each may take long
        if verdict is unless:
            return unless
        undecided = undecided or verdict is None
    return None if undecided else not unless


_any = partial(_all, unless=True)


def _groups(gold: str, prediction: str) -> bool | None:
    first, second = region.read_group(gold), region.read_group(prediction)
    if first and second:
        return _same_groups(first, second, gold, prediction)
    group, other = (first, prediction) if first else (second, gold)
    if group is None:
        return None
    equation = region.read_equation(other)
    if equation and equation.name:
        return same(gold if first else equation.right, equation.right if first else prediction)
    if group.is_set and len(group.items) == 1:
        return same(group.items[0], other)
    if binomial := re.fullmatch(r"C\((\d+),(\d+)\)", prediction if second else gold):
        return same(f"\\binom{{{binomial[1]}}}{{{binomial[2]}}}", other)
    return False if _parse(other) else None


def _same_groups(first: region.Group, second: region.Group, gold: str, prediction: str) -> bool | None:
    if first.is_set != second.is_set:  # the only solution, in a set or alone
        one, other = (first, prediction) if first.is_set else (second, gold)
        return same(one.items[0], other) if len(one.items) == 1 else False
    if len(first.items) == 2 and not first.is_set and first.brackets != second.brackets:  # like intervals
        return False
    return _same_sequence(first.items, second.items, ordered=not first.is_set)


def _equations(gold: str, prediction: str) -> bool | None:
    first, second = region.read_equation(gold), region.read_equation(prediction)
    if first and second:
        return _two_equations(first, second)
    equation, other = (first, prediction) if first else (second, gold)
    if equation is None:
        return None
    left = _parse(equation.left)
    if equation.name or (left and not left.symbols()):
        return same(equation.right, other) if first else same(other, equation.right)
    return False if _parse(split_unit(other)[0]) else None


def _two_equations(first: region.Equation, second: region.Equation) -> bool | None:
    if first.name and second.name:
        names = {first.name, second.name}
        prose = re.fullmatch("[^:]*[一-鿿][^:]*", first.name + second.name)
        if len(names) == 1 or names <= _FUNCTIONS_OF or prose:
            return same(first.right, second.right)
    nodes = [node for side in (*first[:2], *second[:2]) if (node := _parse(side))]
    if len(nodes) < 4:
        return False if first.name and second.name else None
    return same_curve(Node("subtract", tuple(nodes[:2])), Node("subtract", tuple(nodes[2:])))


def _parse(text: str) -> Node | None:
    try:
        return parse_expression(text)
    except NotAnExpression:
        return None


def _quantities(gold: str, prediction: str) -> bool | None:
    body, unit = split_unit(gold)
    plain = bool(unit or re.fullmatch(r"[\d.,/%\s-]*", gold))
    other_body, other = split_unit(prediction, bare_letters=plain)
    first, second = _parse(body), _parse(other_body)
    if first is None or second is None:
        return None
    stated = [found for found in (unit, other) if found and found.dimensions]
    if any(dict(found.dimensions).keys() & {"degree", "radian"} for found in stated):
        return _same_angle(first, unit, second, other)
    if len(stated) < 2:  # a unit may be left out
        counted = any(found.counts for found in (unit, other) if found)
        return False if counted and stated and stated[0].measures() else same_value(first, second)
    if stated[0].dimensions != stated[1].dimensions:
        return False
    factors = [Node("number", value=found.factor) for found in stated]
    return same_value(Node("multiply", (first, factors[0])), Node("multiply", (second, factors[1])))


def _same_angle(first: Node, unit: Unit | None, second: Node, other: Unit | None) -> bool | None:
    kinds = [found.dimensions[0][0] if found and found.dimensions else "" for found in (unit, other)]
    if set(kinds) == {"degree", "celsius"}:  # 5度
        return same_value(first, second)
    if not set(kinds) <= {"degree", "radian", ""}:
        return False
    if "" in kinds and same_value(first, second):
        return True
    pair = zip((first, second), kinds, strict=True)
    return same_value(*(Node("degree", (node,)) if kind == "degree" else node for node, kind in pair))
