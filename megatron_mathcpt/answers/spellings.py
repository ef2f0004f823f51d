"""One spelling for numbers, operations, equalities and units in a solution: digits, + - * / ^ = ≈.

Words for operations become signs (48 divided by 2, 3的2倍), units of measure and scales factors after ⋅,
other nouns before an operator the factor ⋅(1). Every pattern takes linear time.
"""

import unicodedata
from fractions import Fraction

import regex as re

from megatron_mathcpt.answers.units import UNIT_FACTORS

NUMBER = r"(?<!\d)\d++(?:\.\d++)?+"
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SCALES |= {"百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_FACTORS: dict[str, int | Fraction] = {**_SCALES, **UNIT_FACTORS}
_MEASURES = _FACTORS.keys() - {"ha", "in"}
_MEASURE = rf"({'|'.join(sorted(map(re.escape, _MEASURES), key=len, reverse=True))})(?:es|s)?(?![a-z])"
# A word after a number that belongs to it, as in 3 red apples + 4 pears; not one of prose or of a function.
_NOUN = (
    r"(?!(?:and|is|are|was|were|has|have|had|so|then|plus|minus|times|equals?|gives?|makes?|yields?|which|that|if"
    r"|when|mod|sin|cos|tan|log|choose|remainder|squared|cubed|more|less|fewer|divided|multiplied|than|over|the|he"
    r"|she|it|they|we|who|because|since|but|or|hundreds|tens|ones|quarters?|dimes?|nickels?|penn(?:y|ies))\b)"
    r"[A-Za-z][a-z]++(?:['’-][a-z]++)?+"
)
_NOUNS = (
    rf"(?:/[a-z]{{2,}}+| [GMKT]B\b| {_NOUN}| (?:a|the|per|of|in|for|at) {_NOUN}| \d(?:st|nd|rd|th)\b){{1,8}}+"
)
_IS = (
    r"(?:,? {1,2}(?:which|that|this)(?= is| equals))?+,? {1,2}(?:(?:is|are) equal to|is|are|was|equals?"
    r"|gives?|makes?|yields?|to get|gets?|comes? to|you get|we get)"
    r"(?: (?:a total of|exactly|only))?+ {1,2}(?=[£€]?\d)"
    r"|(?:[,，]?结果)?[是为得] {0,2}(?=\d)"
)
_DIVISION = r"(?<![\d./*+-])(?<![/*+-] )(\d++)\s*+/\s*+(\d++)\s*+=\s*+(\d++)\s*+"
_REST = (
    r"(?:\(?[^\s\d()=.]{1,8}\)?)?[\s;(]*+"
    r"(?:…++|\.{3,6}|(?:\\[lc]?dots[\s;]*+){1,2}|R(?![A-Za-z])|余数?|(?:with )?remainder)"
)
_ROWS = r"\\(?:begin|end)\{(?:align|gather|equation|split|eqn|array|multline)[^{}]{0,9}\}(?:\{[lcr]{1,9}\})?"
_SPELLINGS = (
    (r"([⁰¹²³⁴-⁹⁺⁻]++)(?!√)", r"^{\1}"),
    (r"([¼-¾⅐-⅞])", r"\\frac{\1}"),
    (rf"√ ?({NUMBER})", r"\\sqrt{\1}"),
    (r"\*{6}|(?:\\cdot\s*+){3,6}", "…"),
    (r"<<|>>", ";"),
    (r"(?s)\[asy\].{0,5000}?\[/asy\]|\\left\s?(?:\\\{|\{|\|)", "|"),
    (r"(?:\\textbackslash(?:\{\})?){2}", "\n"),
    (r"\\text(?:backslash|asciitilde)(?:\{\})?", " "),
    (r"\\\\\s*+&?\s*+(?:\\q?quad)?\s*+(?=[-+*]|\\cdot|\\times)", " "),  # of one equation in two rows
    (rf"\\\\(?:\[\w+\])?|{_ROWS}", "\n"),
    (r"\\(?:begin|end)\{", "|"),
    (r"(?<![\d)}])(?:\$|\\[(\[])(?=\s?-\s?\d)", " ; "),
    (r"(?:\$\s++\$++|\$\$\s*+\$\$)(?![=+*/≈]|\\(?:approx|times|cdot|div))|\\[)\]]\s*+\\[(\[](?!\s?=)", " ; "),
    (r"\\boxed\s?\{([^{}]{1,40})\}", r" \1 "),
    (r"\\q?quad(?![A-Za-z])(?!\s*=)", " ; "),
    (r"\\(?:boxed|displaystyle|limits|rm|bf|qquad|quad|mathbf)(?![A-Za-z])|\\&", " "),
    (r"\\(?:text|mathrm|mbox|textbf|textrm)\s?\{([^{}]{0,40})\}", r" \1 "),
    (r",?\\!|\{,\}|\^\s*+\{?\\circ\}?|°|(?<=\d)(?<!\(\d{1,3}),(?=\d{3}(?![\d)]))", ""),
    (r"\*\*|\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\[,;:!$()\[\]]|[$＄¥￥£€&]|~", " "),
    (r"\\times|\\cdot(?!s)|\\ast|(?<=[\d)])(?:[xX]|\s{1,2}[xX]\s{1,2})(?=[\d(])", "*"),
    (r"\\div", "/"),
    (r"--", "-"),
    (r"(?<=\d) {0,2}(?:\\%|%| percent\b)", "%"),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\frac ?(\d) ?\{(\d{1,9})\}", r"\\frac{\1}{\2}"),
    (r"\\approx", "≈"),
    (r"(?<=\d)．(?=\d)", "."),
    (rf"{_DIVISION}{_REST}[\s;(]*+(\d++)(?!\.\d|\s*+[-+*/])", r"; \1 = \2*\3+\4 "),
    (r"(?<![\w-])(?i:one[- ]half|half) (?:of )?(?=\d)", "1/2*"),
    (r"(?<=\d)的一半", "/2"),
    (r"(?<![\w-])(?i:an?|one)[- ]third of (?=\d)", "1/3*"),
    (r"(?<![\w-])(?i:an?|one)[- ](?:quarter|fourth) of (?=\d)", "1/4*"),
    (r"\b(?i:twice|double) (?=\d)", "2*"),
    (rf"\bsum of ({NUMBER}),? and ({NUMBER})|({NUMBER})[与和]({NUMBER})的和", r"; \1\3+\2\4"),
    (rf"\bproduct of ({NUMBER}),? and ({NUMBER})|({NUMBER})[与和]({NUMBER})的积", r"; \1\3*\2\4"),
    (rf"({NUMBER})[与和]({NUMBER})的差", r"; \1-\2"),
    (rf"\bsquare root of ({NUMBER})", r"; \\sqrt{\1}"),
    (rf"\bsquare of ({NUMBER})|({NUMBER})(?: squared|的平方)", r" \1\2^2"),
    (r"(?<=\d)(?: cubed|的立方)", "^3"),
    (r"(?<=\d)(?: times | multiplied by |乘以?)(?=[$\d])|(?<=\d)的(?=\d++(?:倍|%|/\d))", "*"),
    (r"(?:(?<=%)|(?<=\d/\d)|(?<=\d/\d\d)|(?<=\d\})) of {1,2}(?=\d)", "*"),
    (r"(?<=\d)倍", ""),
    (r"(?<=\d)(?: divided by | over |除以)(?=\d)", "/"),
    (r"(?<=\d)(?: minus | less |减去?)(?=\d)", "-"),
    (r"(?<=\d)(?: plus |加上?)(?=\d)", "+"),
    (r"(?<=\d)等于(?=\d)", "="),
    (rf"(?<=[\d%)}}])(?:{_IS})", " ≟ "),  # an equality only after an operation
    (rf"(?<=\d)(?!\d)[ -]{{0,2}}(?:(square|cubic|平方|立方) ?)?{_MEASURE}(?: ?\^ ?\{{?([23])\}}?)?", "⋅"),
    (r"(?<=[\d)]) ?/ ?[a-z]{2,}+", "⋅(1)"),
    (r"(?<=\d) ?\((?:[一-鿿]{1,4}|(?!mod|base)[A-Za-z][a-z]{2,14})\)(?= ?[-+*/=≈])", "⋅(1)"),
    (rf"(?<=[\d)]){_NOUNS}(?=\s{{0,2}}(?:[-+*/=≈]\s{{0,2}}[(\d]|[=≈]|\)))", "⋅(1)"),
    (r"(?<=[\d)])[一-鿿]{1,4}(?=\s?[-+*/=≈]\s?[(\d])", "⋅(1)"),
    (r"(?<!\s)\s++(?=[=≈])|(?<=[=≈])\s++", " "),
)
_SIGNS = str.maketrans("−–－—（）＋＝％×·∗⋅÷≒`", "----()+=%****/≈ ")
_UNIT = re.compile(r"⋅\([\d/]+\)")
_COMPILED = [(re.compile(pattern), sign) for pattern, sign in _SPELLINGS]
RUN = re.compile(r"(?:[\d+\-*/^()\[\]{}%!=≈≟⋅ \t]|\.(?=\d)|\\(?:frac|sqrt|[dt]?binom)(?![A-Za-z]))++")


def respelled(text: str) -> tuple[str, list[int]]:
    """`text` with one spelling for each sign, and the place in `text` of each of its characters."""
    text, places = text.translate(_SIGNS), list(range(len(text) + 1))
    for pattern, sign in _COMPILED:
        pieces, moved, end = [], [], 0
        for found in pattern.finditer(text):
            new = _factor(found) if sign == "⋅" else found.expand(sign)
            if sign[-3:] == r"\1}":  # ² is 2, and ½ is 1⁄2
                new = unicodedata.normalize("NFKC", new).translate(_SIGNS).replace("⁄", "}{")
            pieces += [text[end : found.start()], new]
            moved += [*places[end : found.start()], *[places[found.start()]] * len(new)]
            end = found.end()
        if end:
            text, places = "".join(pieces) + text[end:], moved + places[end:]
    return text, places


def _factor(measure: re.Match[str]) -> str:
    power = {"square": 2, "平方": 2, "cubic": 3, "立方": 3}.get(measure[1], int(measure[3] or 1))
    return f"⋅({_FACTORS[measure[2]] ** power})"


def plain(side: str) -> str:
    """A side of an equation without units."""
    return _UNIT.sub("", side) if "⋅" in side else side
