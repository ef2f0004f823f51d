"""Find false equations between numbers in a solution: a right answer may come from wrong arithmetic.

Only what is written with digits, operators, brackets, fractions and roots is judged, exactly, or in the words
for them (48 divided by 2 is 24, 3的2倍是6). A side next to a letter or another unread sign is passed over.
Units and nouns after numbers are left out; units of measure and scales are also tried as factors, and an
equation is false only if no reading is true. Nothing is executed; the time is linear in the text.
"""

from collections.abc import Sequence
from fractions import Fraction

import regex as re

from megatron_mathcpt.answers.expression import NotAnExpression, OutOfSteps, parse_expression
from megatron_mathcpt.answers.units import UNIT_FACTORS
from megatron_mathcpt.answers.value import Undefined, arithmetic, evaluate

_LONGEST = 120  # characters of a side
_MOST_DIGITS = 15
_NUMBER = r"\d++(?:\.\d++)?+"
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SCALES |= {"百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_FACTORS = {**_SCALES, **{word: factor for word, factor in UNIT_FACTORS.items() if word not in ("ha", "in")}}
_MEASURE = "|".join(sorted(map(re.escape, _FACTORS), key=len, reverse=True))
# A word after a number that belongs to it, as in 3 red apples + 4 pears; not one of prose or of a function.
_NOUN = (
    r"(?!(?:and|is|are|was|were|has|have|had|so|then|plus|minus|times|equals?|gives?|makes?|yields?|which|that|if|when"
    r"|mod|sin|cos|tan|log|choose|remainder|squared|cubed|more|less|fewer|divided|multiplied|than|over|the|he|she|it"
    r"|they|we|we're|who|because|since|but|or)\b)[A-Za-z][a-z]++(?:['’-][a-z]++)?+"
)
_IS = (
    r"(?:,? {1,2}(?:which|that|this)(?= is| equals))?+,? {1,2}(?:is equal to|are equal to|is|are|was|equals?|gives? us|gives?|makes?|yields?|to get"
    r"|gets?|comes? to|you get|we get)(?: (?:a total of|exactly|only))?+ {1,2}(?=[£€]?\d)|(?:[,，]?结果)?[是为得] {0,2}(?=\d)"
)
_SPELLINGS = (
    (r"<<|>>", ";"),
    (r"(?s)\[asy\].{0,5000}?\[/asy\]|\\left\s?(?:\\\{|\{|\|)", "|"),
    (r"(?:\\textbackslash(?:\{\})?){2}", "\n"),
    (r"\\textbackslash(?:\{\})?|\\textasciitilde(?:\{\})?", " "),
    (r"\\\\\s*+&?\s*+(?:\\q?quad)?\s*+(?=[-+*]|\\cdot|\\times)", " "),
    (
        r"\\\\(?:\[\w+\])?|\\(?:begin|end)\{(?:align|gather|equation|split|eqn|array|multline)[^{}]{0,9}\}(?:\{[lcr]{1,9}\})?",
        "\n",
    ),
    (r"\\(?:begin|end)\{", "|"),
    (r"(?<=\d)．(?=\d)", "."),
    (
        r"(?<![\d)}])(?:\$|\\[(\[])(?=\s?-\s?\d)|(?:\$\s++\$++|\$\$\s*+\$\$)(?![=+*/≈]|\\(?:approx|times|cdot|div))|\\[)\]]\s*+\\[(\[](?!\s?=)",
        " ; ",
    ),
    (r"\\boxed\s?\{([^{}]{1,40})\}", r" \1 "),
    (r"\\q?quad(?![A-Za-z])(?!\s*=)", " ; "),
    (r"\\(?:boxed|displaystyle|limits|rm|bf|qquad|quad|mathbf)(?![A-Za-z])|\\&", " "),
    (r"\\(?:text|mathrm|mbox|textbf|textrm)\s?\{([^{}]{0,40})\}", r" \1 "),
    (r",?\\!|\{,\}", ""),
    (r"\^\s*+\{?\\circ\}?|°", ""),
    (r"\*\*|\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\[,;:!$()\[\]]|[$＄¥￥£€&]|~", " "),
    (r"\\times|\\cdot(?!s)|\\ast|×|·|∗|⋅|(?<=[\d)])(?:[xX]|\s{1,2}[xX]\s{1,2})(?=[\d(])", "*"),
    (r"\\div|÷", "/"),
    (r"[−–－—]|--", "-"),
    (r"（", "("),
    (r"）", ")"),
    (r"(?<=\d) {0,2}(?:\\%|[％%]| percent\b)", "%"),
    (r"\\d?t?frac", r"\\frac"),
    (r"(?<=\d)(?<!\(\d{1,3}),(?=\d{3}(?![\d)]))", ""),
    (r"＋", "+"),
    (r"＝", "="),
    (r"\\approx|≒", "≈"),
    (
        r"(?<![\d./*+-])(?<![/*+-] )(\d++)\s*+/\s*+(\d++)\s*+=\s*+(\d++)\s*+(?:\(?[^\s\d()=.]{1,8}\)?)?[\s;(]*+(?:…++|\.{3,6}|(?:\\[lc]?dots[\s;]*+){1,2}|(?:\*[\s;]*+){3}|R\b|R(?=\d)|余数?|(?:with )?(?:a )?remainder(?: of)?)[\s;(]*+(\d++)(?![\d.])",
        r"; \1 = \2*\3+\4 ",
    ),
    # Words for numbers, operations and equality.
    (r"(?<![\w-])(?:one[- ])?half (?:of )?(?=\d)|(?<=\d)的一半", "1/2*"),
    (
        r"(?<![\w-])(?:an?|one)[- ](?:third|quarter|fourth|fifth|tenth) of (?=\d)",
        lambda m: f"1/{_PARTS[m[0].split()[-2].split('-')[-1]]}*",
    ),
    (r"\b(?:twice|double) (?=\d)", "2*"),
    (
        rf"\b(sum|product) of ({_NUMBER}),? and ({_NUMBER})",
        lambda m: f"; {m[2]}{'+*'[m[1] == 'product']}{m[3]}",
    ),
    (
        rf"({_NUMBER})[与和]({_NUMBER})的([和积差商])",
        lambda m: f" {m[1]}{'+*-/'['和积差商'.index(m[3])]}{m[2]}",
    ),
    (rf"\bsquare root of ({_NUMBER})|√({_NUMBER})", lambda m: rf"; \sqrt{{{m[1] or m[2]}}}"),
    (rf"\bsquare of ({_NUMBER})|({_NUMBER})(?: squared|的平方)", lambda m: f" {m[1] or m[2]}^2"),
    (r"(?<=\d) cubed|(?<=\d)的立方", "^3"),
    (
        r"(?<=\d)(?: times | multiplied by |乘以?)(?=[$\d])|(?:(?<=%)|(?<=\d/\d)|(?<=\d/\d\d)) of (?=\d)|(?<=\d)的(?=\d++(?:倍|%|/\d))",
        "*",
    ),
    (r"(?<=\d)倍", ""),
    (r"(?<=\d)(?: divided by | over |除以)(?=\d)", "/"),
    (r"(?<=\d)(?: minus | less |减去?)(?=\d)", "-"),
    (r"(?<=\d)(?: plus |加上?)(?=\d)", "+"),
    (r"(?<=\d)等于(?=\d)", "="),
    (rf"(?<=[\d%)}}])(?:{_IS})", " ≟ "),
    # Units of measure are kept as factors, nouns before an operator are left out.
    (
        rf"(?<=\d)[ -]{{0,2}}(?:(?:square|cubic) )?({_MEASURE})(?:es|s)?(?![a-z])(?: ?\^ ?\{{?[23]\}}?)?",
        lambda m: f"⋅({_FACTORS[m[1]]})",
    ),
    (r"(?<=[\d)]) ?/ ?[a-z]{2,}+", "⋅(1)"),
    (
        rf"(?<=[\d)])(?: [GMKT]B\b| {_NOUN}| (?:a|the|per|of|in|for|at) {_NOUN}| \d(?:st|nd|rd|th)\b){{1,8}}+(?=\s{{0,2}}(?:[-+*/=≈]\s{{0,2}}[(\d]|[=≈]|\)))",
        "⋅(1)",
    ),
    (r"(?<=[\d)])[一-鿿]{1,4}(?=\s?[-+*/=≈]\s?[(\d])|(?<=\d)\([一-鿿]{1,4}\)(?=\s?[-+*/=≈])", "⋅(1)"),
    (r"(?<!\s)\s++(?=[=≈])|(?<=[=≈])\s++", " "),
)
_PARTS = {"third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10}
_COMPILED = [(re.compile(pattern), sign) for pattern, sign in _SPELLINGS]
_RUN = re.compile(r"(?:[\d+\-*/^()\[\]{}%!=≈≟⋅ \t]|\.(?=\d)|\\(?:frac|sqrt|[dt]?binom)(?![A-Za-z]))++")
# Words around an equation that belong to it: 20% of 50 = 10, 7 = 2 remainder 1. Fewer around an operation.
_BEFORE = re.compile(
    r"(?<![A-Za-z'’])(?:(?-i:[A-Z]{1,4}|[b-z])|times|plus|minus|over|log|ln|sin|cos|tan|mod|choose|than|divided|multiplied|(?P<word>of|to|and|per|by))\s*+$"
    r"|\\(?!(?:leq?|geq?|lt|gt|equiv|approx|therefore|because|Rightarrow|implies|iff|to)(?![A-Za-z]))[A-Za-z]++(?:\s|\\ )*+$|(?:分之|千|万|亿|倍|加|减|乘|除|余|根号|(?P<word>[的与和]))\s*+$",
    re.I,
)
_OPERAND = re.compile(
    r"(?:\d[\d./]*+%?|(?<![a-z])(?:half|thirds?|quarters?|fourths?|fifths?|percent|sum|product|difference|average|mean|median|square|root|cube"
    r"|factorial|multiple|remainder|mod\w*+|between|from|[a-z])) *+(?:of|to|by|per|的|[与和])\s*+$"
    r"|(?:\b(?:sum|product|difference|average|mean|between|both|from)\b[^.;]{0,30}|\d )and\s*+$",
    re.I,
)
_AFTER = re.compile(
    r"(?:times|plus|minus|over|divided by|multiplied by|choose|of|and|or|to|more than|less than)\b(?= ?(?:\d|\(|\\frac))|mod\b|分之|倍|加\d|减\d|乘|除|余",
    re.I,
)
# An equation that is not claimed, or one of another arithmetic.
_UNCLAIMED = re.compile(
    r"(?:\b(?:if|suppose|assume|try|whether|not|than|instead of|mistake|error|wrong\w*|false|wait)\b|假设|如果|若|不是|而非|误)(?:[,:，：]| that| we (?:had|have|say))?[^\w]{0,3}$"
    r"|\b(?:base|mod|clock)\b|进制|\bwait\b[^.]*$",
    re.I,
)
_DENIED = re.compile(
    r"(?:, ?(?:which|that|but|this) ?)?[^,，.;。；\n=]{0,12}(?:\b(?:is|are|was|be) ?(?:n't|not) (?:right|correct|true|possible|equal)|\b(?:false|wrong|incorrect|impossible|contradict\w*|base|mod|clock|absurd)\b"
    r"|[?？]|不成立|不对|错误|错了|矛盾|进制|不等|不正确)|\s?[ap]\.?m\b|[\s.,;!。，；！]{0,3}(?:wait|no|oops|hmm|actually|不对|等等|错)\b",
    re.I,
)
_REMAINDER = re.compile(
    r"[\s;(]*+(?:[^\s\d=;.()]{1,12}+\)?[\s;]*+)?(?:…|\.\.|\\[lc]?dots|\\cdot|R(?![a-z])|r ?\d|余)|and (?=[\s$(]*\d+ ?/|\\frac)"
    r"|[^.\n=]*?(?:remain|\bleft over|leftover|\bround)",
    re.I,
)


def false_equations(text: str) -> list[str]:
    """The false ones of the equations in `text`, as read. A side may be rounded to the digits that it has."""
    return [equation for _, equation in _false_with_places(text)]


def first_false_step(text: str, spans: Sequence[tuple[int, int]]) -> tuple[int, str] | None:
    """The number, from 0, of the step with the first false equation, and the equation as read.

    `spans` are begin and end of each step in `text`, in order. An equation is in the step of its right side,
    wherever it begins.
    """
    for place, equation in _false_with_places(text):
        steps = [number for number, (begin, _) in enumerate(spans) if begin <= place]
        if steps:
            return steps[-1], equation
    return None


def _false_with_places(text: str) -> list[tuple[int, str]]:
    text, places = _respelled(text)
    found = []
    for run in _RUN.finditer(text):
        if re.search("[=≈≟]", run[0]):
            before, after = text[max(0, run.start() - 60) : run.start()], text[run.end() : run.end() + 60]
            before, after = before.rpartition("\n")[2], after.partition("\n")[0]
            if not _UNCLAIMED.search(before) and not _DENIED.match(after):
                found += [(places[run.start() + at], each) for at, each in _false_in(run[0], before, after)]
    return found


def _respelled(text: str) -> tuple[str, list[int]]:
    """`text` with one spelling for each sign, and the place in `text` of each of its characters."""
    places = list(range(len(text) + 1))
    for pattern, sign in _COMPILED:
        pieces, moved, end = [], [], 0
        for found in pattern.finditer(text):
            new = sign(found) if callable(sign) else found.expand(sign)
            pieces += [text[end : found.start()], new]
            moved += [*places[end : found.start()], *[places[found.start()]] * len(new)]
            end = found.end()
        if end:
            text, places = "".join(pieces) + text[end:], moved + places[end:]
    return text, places


def _false_in(run: str, before: str, after: str) -> list[tuple[int, str]]:
    sides = [*re.finditer(r"[^=≈≟]++", run)]
    if re.search("[=≈≟]{2}", run):
        return []
    signs = re.findall("[=≈≟]", run)
    texts = [side[0].strip() for side in sides]
    if run[:1] in "=≈≟":
        texts, sides = ["", *texts], [None, *sides]
    if run[-1:] in "=≈≟":
        texts, sides = [*texts, ""], [*sides, None]
    if texts[0][:1] == "(" and texts[-1][-1:] == ")" and run.count("(") == run.count(")") == 1:
        texts[0], texts[-1], before, after = (
            texts[0][1:],
            texts[-1][:-1],
            "",
            "",
        )  # the equation is in brackets
    if not before.strip():  # the mark of a list
        texts[0] = re.sub(r"^(?:[-*+]\s+|\(?\s*\d{1,2}\s*\)\s+|\d{1,2}\))", "", texts[0])
    texts[0] = re.sub(r"^\)\s*(?=\d)", "", texts[0])
    remainder = re.search(r"/|\\frac", run) and _REMAINDER.match(after)
    if re.search(r"\d\s*\($", texts[-1]):  # what is counted, in brackets
        texts[-1], after = texts[-1][:-1].strip(), ""
    values = [_values(side) for side in texts]
    if not _begins(texts[0], before, len(run) - len(run.lstrip())):
        values[0] = []
    if remainder or not _ends(texts[-1], after, len(run) - len(run.rstrip())):
        values[-1] = []
    found = []
    for number, sign in enumerate(signs):
        left, right = texts[number : number + 2]
        if not number and not _states(left, right, before):
            continue
        if _is_false(left, right, values[number], values[number + 1], sign):
            found.append(
                (
                    sides[number + 1].start() if sides[number + 1] else 0,
                    _plain(f"{left} {'=≈'[sign == '≈']} {right}"),
                )
            )
    return found


_OPERATION = re.compile(r"(?<=.)[-+*/^!]|\\")


def _states(left: str, right: str, before: str) -> bool:
    """Whether a first side that is one number states an equation, 57 = 3 * 19, and is no thing: 12 eggs = 1 * 12."""
    lone = re.fullmatch(r"[-({]*+[\d.]++[)}]*+(?P<unit>(?:/\d++)?(?:⋅\([\d/]++\))++)?+", left)
    if not lone:
        # The sign of multiplication may be that of a new operation: 4 * 3 = 2(4) + 3(3).
        operands = re.fullmatch(r"\(?(\d+)\)? ?\* ?\(?(\d+)\)?", left)
        return not (
            operands and _OPERATION.search(right) and set(operands.groups()) <= set(re.findall(r"\d+", right))
        )
    stated = re.search(
        r"(?:^|[^\w\s]|[一-鿿]|\b(?:since|so|because|as|that|then|have|get|thus|hence|and|also))\s*$", before
    )
    return bool(stated and not lone["unit"] and _OPERATION.search(_plain(right)))


def _is_false(left: str, right: str, first: list[Fraction], second: list[Fraction], sign: str) -> bool:
    operations = [bool(_OPERATION.search(_plain(side))) for side in (left, right)]
    if (
        not first
        or not second
        or (sign == "≟" and (operations != [True, False] or re.fullmatch(r"\d+/\d+", left) and first[0] < 1))
    ):
        return False
    for one in first:
        for other in second:
            if _agrees(one, other, _plain(right)) or _agrees(other, one, _plain(left)):
                return False
            if (
                sign == "≈"
                and ("." not in right or operations[1])
                and abs(one - other) <= max(Fraction(1), abs(one) / 20)
            ):
                return False
    return True


def _begins(side: str, before: str, spaced: int) -> bool:
    """Whether the equation's first side begins here: before it is prose, the end of a sentence, nothing."""
    end = before.rstrip()[-1:]
    if side[:1] in "+*/^)%!]}⋅" or (side[:1] == "-" and end not in ("", *",;:.，；：。")):
        return False
    if re.search(r"\d\s*[:：]\s*$|\d[,，]$", before) and not (before[-1] in ",，" and spaced):
        return False
    if re.search(r"[-+*/]\s+(?:[A-Za-z'’.]+\s+){1,5}$", before):  # 5 apples + all of the 7 pears
        return False
    if word := _BEFORE.search(before):
        letter = spaced > 1 and re.search(r"[A-Za-z]\s*$", before) and not word["word"]
        return bool(letter or (word["word"] and _OPERATION.search(side) and not _OPERAND.search(before)))
    return bool(spaced or re.search(r"(?:^|[\s;:!?()\"'”“。，；：、（）*><≤≥]|[一-鿿])$", before))


def _ends(side: str, after: str, spaced: int) -> bool:
    if (
        side[-1:] in "+-*/^([{⋅"
        or _AFTER.match(after)
        or (spaced < 2 and re.match(r"(?-i:[A-Zb-z])(?![A-Za-z])", after))
    ):
        return False
    if re.match(
        r"[.,][\\\d(]|\\(?!\\|(?:leq?|geq?|lt|gt|neq?|equiv|approx|text|Rightarrow|implies|to)(?![A-Za-z]))",
        after,
    ):
        return False  # a repeating decimal, a list
    return not after or spaced > 0 or not re.match(r"[A-Za-z^_|'√:~@]", after)


def _plain(side: str) -> str:
    return re.sub(r"⋅\([\d/]+\)", "", side)


def _values(side: str) -> list[Fraction]:
    """The values that `side` may have: with units left out or as factors, 6/1/2 as 12 too, 2 1/2 as a product."""
    if (
        not side
        or len(side) > _LONGEST
        or re.search(
            rf"\d{{{_MOST_DIGITS + 1}}}|\d\s+\d++(?! ?/ ?\d)|\)\s+\d|[\d)}}]\s{{2,}}\(|⋅\([\d/]+\)\s*\(|\[[^()\]]*\]|\^[\d\s]*\^|\^\{{?\d{{4}}|(?<![\d.])[\d.]++\s*+[+-]\s*[\d.]++%",
            side,
        )
    ):
        return []
    plain = _plain(side)
    readings = {plain, plain.rstrip("!"), re.sub(rf"({_NUMBER})⋅\(([\d/]+)\)", r"(\1*\2)", side)}
    readings |= {re.sub(r"/ ?(\d++ ?/ ?\d++)$", r"/(\1)", plain), re.sub(r"(?<=\d)\s*(?=\\frac)", "*", plain)}
    return [value for each in readings if (value := _value(each)) is not None]


def _value(side: str) -> Fraction | None:
    try:
        text = re.sub(rf"({_NUMBER}|\.\d+)%", r"(\1/100)", side).replace("*", "\\cdot ")
        value = evaluate(parse_expression(text))
    except (NotAnExpression, OutOfSteps, Undefined):
        return None
    if isinstance(value, Fraction):
        return value
    context = arithmetic()
    if context.isinf(value) or context.im(value):
        return None
    near = Fraction(int(context.re(value) * 2**150), 2**150)
    exact = near.limit_denominator(10**6)
    return exact if abs(exact - near) < Fraction(1, 2**130) else near


def _agrees(exact: Fraction, written: Fraction, side: str) -> bool:
    """Whether `written`, the value of `side`, is `exact`, in percent, or rounded or cut to its decimals."""
    number = re.fullmatch(r"[-({ ]*\d*\.(\d+)(%?)[)} ]*", side)
    unit = Fraction(1, 10 ** (len(number[1]) + 2 * bool(number[2]))) if number else Fraction(0)
    for scale in (1, 100, Fraction(1, 100)) if "%" in side else (1,):
        more = abs(exact * scale) - abs(written)  # as large as the decimals that were cut
        if abs(exact * scale - written) <= abs(written) / 2**120 or (
            exact * written >= 0 and -unit / 2 <= more < unit and unit
        ):
            return True
    return False
