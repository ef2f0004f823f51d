"""Turn the LaTeX within a text into MathML, for a page without scripts or fonts of its own.

Texts are outputs of models and count as hostile: of what latex2mathml makes, only known elements and attributes
with harmless values reach the page. What it cannot convert is shown as it is written.
"""

import html
import re
from functools import lru_cache
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markupsafe import Markup, escape

MAX_TEXT, MAX_FORMULAS = 8000, 60  # characters in which formulas are looked for; formulas of a text
MAX_SOURCE, MAX_DEPTH = 1500, 50  # of a formula
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_ENVIRONMENTS = r"(?:align|equation|gather|eqnarray|multline|array|cases|[pbvBV]?matrix)(?:ed)?\*?"
# A drawing, and a dollar that is no delimiter, come first: they are text. The rules for `$` are those of Pandoc,
# with spaces next to it where a command, an equation or a power is between; so `$5 and $6` are amounts of money.
_FORMULA = re.compile(
    r"(?P<drawing>\[asy\].*?(?:\[/asy\]|\Z))|(?P<escaped>\$\\\$\$|\\[$%])|(?P<newline>\\\\)"
    r"|\$\$(?P<block>(?:\\.|[^$\\])+)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<paren>.+?)\\\)"
    r"|\$(?! )(?P<dollar>(?:\\.|[^$\\])+)(?<! )\$(?!\d)"
    r"|\$(?=[^$]*[\\=^])(?P<spaced>(?:\\.|[^$\\])+)\$(?!\d)"
    rf"|(?P<environment>\\begin\{{(?P<name>{_ENVIRONMENTS})\}}.+?\\end\{{(?P=name)\}})"
    rf"|(?P<boxed>\\boxed *{_GROUP})",
    re.DOTALL,
)
_BLOCKS = ("block", "bracket", "environment")
# Without delimiters: a gold answer such as \frac{1}{2}, and LaTeX between Chinese characters.
_BARE = re.compile("(?P<bare>[!-~](?:[ -~]*[!-~])?)")
_COMMAND = re.compile(r"\\[a-zA-Z!,]")
_WORDS = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{2,}[,.;]? +[A-Za-z]{2,}")  # prose, not a formula
_TEXTS = re.compile(rf"\\(?:text\w*|mbox|hbox|mathrm|operatorname|begin|end) *{_GROUP}")
# Definitions could repeat themselves without end.
_REFUSED = re.compile(
    r"\\(?:newcommand|renewcommand|def|DeclareMathOperator|newenvironment|unicode)(?![a-zA-Z])"
)
_ALIGNED = r"(?:aligned|alignat|gather(?:ed)?|eqnarray|multline|align|split)\*?"
# Other spellings of what latex2mathml knows; the ends of an equation are those of the formula.
_SPELLINGS = {
    re.compile(spelling, re.DOTALL): known
    for spelling, known in {
        r"\\(?:begin|end)\{equation\*?\}|\\(?:displaylimits|nonumber|label\{[^{}]*\}|hfill)": "",
        r"\\renewcommand\{\\arraystretch\}\{[\d.]+\}|@\{[^{}]*\}": "",
        rf"\\(begin|end)\{{{_ALIGNED}\}}": r"\\\1{align*}",
        r"\\(begin|end)\{tabular\}": r"\\\1{array}",
        r"\\(begin|end)\{[dr]cases\}": r"\\\1{cases}",
        r"\\begin\{([pbvBV]matrix)\}.*?\\end\{\1\}": r"{\g<0>}",  # with its fences, one base of an exponent
        r"\\cline\{[\d-]*\}": r"\\hline",
        r"\\cancelto(\{[^{}]*\})(\{[^{}]*\})": r"\\overset\1{\\cancel\2}",
        r"\\text(?:bar|less|greater)(?:\{\})? ?": lambda found: {"b": "|", "l": "<", "g": ">"}[found[0][5]],
        r"\\arg(?![a-z])": r"\\operatorname{arg}",
        r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))": r"\\text{,}",  # no space after it
        r"(?<!\\)((?:\\\\)*)%": r"\1\\%",  # else it begins a comment, as in `50%`
    }.items()
}
_PARTS = {name: 2 for name in ("mfrac", "mroot", "msub", "msup", "munder", "mover")}
_PARTS |= {"msubsup": 3, "munderover": 3}
_ELEMENTS = {*_PARTS, *"math mrow mi mn mo mtext mspace msqrt mtable mtr mtd mstyle mpadded mphantom".split()}
_ELEMENTS.add("menclose")
# Lengths are short, so that no part of a formula covers what is next to it.
_LENGTH = r"[+-]?0?\.\d+(?:em|ex|pt)|\d(?:\.\d+)?(?:em|ex|pt|px)?"
_VALUES = {
    "mathvariant": "[a-z-]+",
    "columnalign": "left|right|center",
    "scriptlevel": "[012]",
    **dict.fromkeys(
        ("stretchy", "fence", "accent", "movablelimits", "largeop", "displaystyle"), "true|false"
    ),
    **dict.fromkeys(("form", "notation"), "[a-z ]+"),
    **dict.fromkeys(("linethickness", "minsize", "maxsize", "lspace", "rspace"), _LENGTH),
    **dict.fromkeys(("width", "height", "depth"), _LENGTH),
}
_RULES = ("\u2015", "&#x02015;")  # what latex2mathml puts over and under a term; no browser stretches it


def mathematics(text: str | None) -> Markup:
    """`text` as HTML, its formulas as MathML with their LaTeX in an annotation; the rest is escaped."""
    text = text or ""
    parts, end = [], 0
    kinds = _FORMULA if _FORMULA.search(text, 0, MAX_TEXT) else _BARE
    for number, found in enumerate(kinds.finditer(text, 0, MAX_TEXT)):
        parts.append(escape(text[end : found.start()]))
        parts.append(_part(found) if number < MAX_FORMULAS else escape(found[0]))
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def _part(found: re.Match[str]) -> Markup:
    kind, written = str(found.lastgroup), found[0]
    if kind == "escaped":
        return escape(written.replace("$\\$$", "$")[-1])
    if kind == "drawing":
        return Markup('<code class="drawing">{}</code>').format(written)
    source = found[kind]
    is_text = kind == "newline"
    if kind in ("dollar", "spaced", "bare"):
        is_text = _WORDS.search(_TEXTS.sub("", source)) is not None
    if kind == "bare":
        is_text |= not _COMMAND.search(source) and not ("^" in source and written == found.string.strip())
    return (None if is_text else _formula(source, written, block=kind in _BLOCKS)) or escape(written)


@lru_cache(maxsize=4096)
def _formula(source: str, written: str, *, block: bool) -> Markup | None:
    """A formula as MathML; None if it cannot be converted whole."""
    for spelling, known in _SPELLINGS.items():
        source = spelling.sub(known, source)
    plain = re.sub(r"\\.", "", source, flags=re.DOTALL)
    if len(source) > MAX_SOURCE or plain.count("{") != plain.count("}") or _REFUSED.search(source):
        return None
    try:
        shown = _mathml(convert_to_element(source.strip(), display="block" if block else "inline")[0])
    except Exception:  # it raises many kinds, its own and those of indexing, for what it does not know
        return None
    if not shown:
        return None
    display = Markup(' display="block"') if block else ""
    note = Markup('<annotation encoding="application/x-tex">{}</annotation>').format(written)
    return Markup("<math{}><semantics>{}{}</semantics></math>").format(display, shown, note)


def _mathml(element: Element, depth: int = 0) -> Markup | None:
    """An element with all below it; None if it is not one we know, lacks a part or shows a command."""
    tag = element.tag
    text = html.unescape(element.text or "")  # latex2mathml writes symbols as references
    below = [_mathml(child, depth + 1) for child in element] if depth < MAX_DEPTH else [None]
    if tag not in _ELEMENTS or None in below or _PARTS.get(tag, len(below)) != len(below):
        return None
    if _COMMAND.search(text) and tag != "mtext":
        return None
    if tag in ("mover", "munder") and element[1].text in _RULES:
        return Markup('<mrow class="{}">{}</mrow>').format(tag[1:], below[0])
    known = ((name, value) for name, value in element.attrib.items() if name in _VALUES)
    given = [Markup(' {}="{}"').format(*one) for one in known if re.fullmatch(_VALUES[one[0]], one[1])]
    inner = Markup("").join([escape(text), *(part for part in below if part is not None)])
    if tag == "mrow" and len(below) == 1:
        return inner
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup("").join(given), inner)
