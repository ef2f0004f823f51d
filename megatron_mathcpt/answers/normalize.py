"""One spelling for the many ways of typing the same answer: Unicode, LaTeX and plain text.

The result is LaTeX of a small vocabulary (`\\frac`, `\\sqrt`, `\\cdot`, `\\le`, ...); words stay words.
"""

import re
import unicodedata

from megatron_mathcpt.answers.number_words import arabic_numerals

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")

_BINARY = "ne approx cup cap in pm mp".split()  # noqa: SIM905
_NAMES = (  # noqa: SIM905
    "pi alpha beta gamma theta lambda mu phi omega Delta infty emptyset angle triangle"
).split()
# Symbols that have a LaTeX name; applied after NFKC, which has already folded full-width forms.
_SYMBOLS = {
    **dict.fromkeys("−–—﹣‐‑", "-"),
    **dict.fromkeys("×·⋅∙•✕", " \\cdot "),
    **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("≤⩽≦", " \\le "),
    **dict.fromkeys("≥⩾≧", " \\ge "),
    **dict.fromkeys("°˚º", "^\\circ "),
    **{"∶": ":", "、": ",", "〈": "(", "⟨": "(", "〉": ")", "⟩": ")"},
    **dict.fromkeys("′’", "'"),
    **{sign: f" \\{name} " for sign, name in zip("≠≈∪∩∈±∓", _BINARY, strict=True)},
    **{letter: f"\\{name} " for letter, name in zip("παβγθλμφωΔ∞∅∠△", _NAMES, strict=True)},
    **{"∛": "\\sqrt[3]", "√": "\\sqrt", "ℝ": "\\mathbb{R}", "。": ".", "∧": " and ", "∨": " or "},
}
_TRANSLATION = str.maketrans(_SYMBOLS)

# Commands that mean the same, or nothing; longer patterns first where one is the start of another.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?)(?![A-Za-z])", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![A-Za-z])", ""),
        (r"\\!\s*", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}|&nbsp;", " "),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<|&le;", r" \\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=|&ge;", r" \\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])|!=|\\not\s*=", r" \\ne "),
        (r"\\lt(?![A-Za-z])|&lt;", "<"),
        (r"\\gt(?![A-Za-z])|&gt;", ">"),
        (r"\\(?:times|cdot|ast|bullet)(?![A-Za-z])|(?<!\*)\*(?!\*)", r" \\cdot "),
        (r"\*\*", "^"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])|\\\|", "|"),
        (r"\\(?:lbrace|rbrace)(?![A-Za-z])", lambda m: r"\{" if m.group()[1] == "l" else r"\}"),
        (r"\\(?:lbrack|rbrack)(?![A-Za-z])", lambda m: "[" if m.group()[1] == "l" else "]"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\^\s*\{\s*\\(?:circ|degree)\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"^\\circ "),
        (r"\\infin(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"\\(?:varnothing|empty)(?![A-Za-z])|\\phi\s*$(?<=^\\phi)", r"\\emptyset "),
        (r"\\(?:mathbf|mathbb|mathrm|Bbb|bold)\s*\{?\s*R\s*\}?(?![A-Za-z])|\\R(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\(?:land|wedge)(?![A-Za-z])", " and "),
        (r"\\(?:lor|vee)(?![A-Za-z])", " or "),
        (r"\\(?:dots|ldots|cdots|dotsc)(?![A-Za-z])|\.\.\.|…", r"\\dots "),
        (r"\\var(theta|phi|epsilon|pi|rho|sigma)(?![A-Za-z])", r"\\\1"),
        (r"\\operatorname\s*\*?\s*\{\s*([a-z]+)\s*\}", r"\\\1 "),
        (r"\\%|\s*(?<![A-Za-z])(?:percent|per cent|pct)(?![A-Za-z])", "%"),
        (r"(?<=[\d)}])\s*(?:degrees?|deg)(?![A-Za-z])", r"^\\circ "),
        (r"\+/-|\+-(?=\s*(?:\d|\\sqrt))", r" \\pm "),
        (r"(?<=[)\]])\s*[Uu]\s*(?=[(\[])|(?<![A-Za-z])union(?![A-Za-z])", r" \\cup "),
        (r"(?<![A-Za-z\\])(?:sqrt)(?![A-Za-z])", r"\\sqrt"),
        (r"(?<![A-Za-z\\])(?:[Pp]i)(?![A-Za-z])", r"\\pi "),
        (r"\\(?:because|therefore|approx|sim)(?![A-Za-z])|∴|∵", " "),
        (r"\\#", "#"),
        (r"\\implies|\\Rightarrow|\\to(?![A-Za-z])|⇒|→", " , "),
    )
]
_REPEATING = re.compile(
    r"(\d{1,20})\.(\d{0,20})(?:\\(?:overline|dot|bar)\s*\{(\d{1,20})\}(?!\d)|(\\dot\s*\{\d\}\d{0,20}\\dot\s*\{\d\}))"
)
# A brace over equations is a list of them.
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{cases\}(.*?)\\end\s*\{cases\}"
    r"|\\\{\s*\\begin\s*\{(?:array|aligned)\}(?:\s*\{[lcr]+\})?(.*?)\\end\s*\{(?:array|aligned)\}",
    re.DOTALL,
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|boldsymbol|boxed|fbox|ensuremath)"
    r"\s*\{([^{}]*)\}"
)
_PREFIX = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then|finally|the|an?(?=\s+(?!and|or)[A-Za-z]{2})|final|correct|answers?|"
    r"is|are|:|it's|it is|about|approximately|roughly|exactly|equals?|equal to|we (?:get|have|find)|"
    r"solutions?|values? of)(?![A-Za-z])\s*,?\s*|"
    r"(?:综上(?:所述)?|所以|因此|于是|从而|故|则|解得|可得|得到|得|即|约为|大约|约|答案|最终|正确|应|的|是|为|等于|"
    r"共有|一共有|一共|总共|共|有|答|解|原式|值|结果|选项|选择|应选|选|填)\s*[:,=]?\s*|"
    r"[:=]\s*)",
    re.IGNORECASE,
)


def normalize(text: str) -> str:
    """`text` in the one spelling that the rules read; no mathematics is done here."""
    text = re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+)", lambda m: "^{" + m.group().translate(_SUPERSCRIPT) + "}", text)
    text = re.sub("([₀₁₂₃₄₅₆₇₈₉ₙ]+)", lambda m: "_{" + m.group().translate(_SUBSCRIPT) + "}", text)
    text = re.sub("[①-⑳]", lambda m: f"({ord(m.group()) - 0x245F})", text)  # numbers of statements
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)  # bold of Markdown
    text = _currency(text)
    text = text.translate(_TRANSLATION)
    text = re.sub(r"\\sqrt(?=[0-9.])\s*([0-9]+(?:\.[0-9]+)?)", r"\\sqrt{\1}", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    boxed = re.fullmatch(r"\s*\\(?:boxed|fbox)\s*(\{.*\})\s*", text)
    text = boxed.group(1)[1:-1] if boxed and closes_at_end(boxed.group(1)) else text
    for _ in range(4):  # wrappers inside wrappers
        text, count = _WRAPPER.subn(_unwrap, text)
        if not count:
            break
    text = _SYSTEM.sub(
        lambda m: ", ".join(re.split(r"\\\\", m.group(1) or m.group(2))).replace("&", " "), text
    )
    text = re.sub(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d/])", lambda m: m.group().replace(" ", ""), text)
    text = _REPEATING.sub(_repeating, arabic_numerals(text))
    text = re.sub(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})$", r"\1 \\cdot 10^{\2}", text.strip())
    text = _trim(re.sub(r"\s+", " ", text))
    text = re.sub(r"^<([^<>]*,[^<>]*)>$", r"(\1)", text)  # a vector in angle brackets
    return _without_prefix(text)


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} as the fraction it is: (16 - 1) / 90."""
    whole, fixed = match.group(1), match.group(2)
    period = match.group(3) or "".join(filter(str.isdigit, match.group(4)))
    bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
    return f"\\frac{{{int(whole + fixed + period) - int(whole + fixed)}}}{{{bottom}}}"


def _vulgar_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match.group()).partition("\u2044")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _currency(text: str) -> str:
    """Money signs as words; `$` around mathematics goes, a single `$` before a number is dollars."""
    text = re.sub(r"\\\(|\\\)|\\\[|\\\]", " ", text)
    text = text.replace("\\$", " dollar ")
    if text.count("$") == 1:
        text = re.sub(r"(?:US)?\$(?=\s*[\d.])", " dollar ", text)
    text = text.replace("$", " ")
    return re.sub(r"[¥元]\s*(?=\d)", " yuan ", re.sub("€", " euro ", text.replace("£", " pound ")))


def _unwrap(match: re.Match[str]) -> str:
    inside = match.group(1)
    glued = re.fullmatch(r"[A-Za-z]", inside.strip())  # \mathrm{N}_{1} is a symbol, \text{ cm} a word
    return inside.strip() if glued and not inside.startswith(" ") else f" {inside} "


def _trim(text: str) -> str:
    """Without punctuation at the ends, quotes, and braces around the whole."""
    previous = None
    while text != previous:
        previous = text
        text = text.strip().strip('"“”`').strip()
        text = re.sub(r"(?:(?<!\\)[,;:?]|\.|(?<![\d)}a-z!])!)+$", "", text)
        text = text.removeprefix("*").removesuffix("*")
        if text.startswith("{") and text.endswith("}") and closes_at_end(text):
            text = f"\\{{{text[1:-1]}\\}}" if re.search(r"[,|;]", text) else text[1:-1]
    return text


def closes_at_end(text: str, opening: str = "{", closing: str = "}") -> bool:
    """Whether the first bracket of `text` is closed by its last character."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in opening) - (character in closing)
        if depth == 0 and character in closing:
            return position == len(text) - 1
    return False


def _without_prefix(text: str) -> str:
    for _ in range(6):
        found = _PREFIX.match(text)
        if not found or found.end() == len(text):
            return text
        text = _trim(text[found.end() :])
    return text
