"""Turn the LaTeX within a text into MathML, for a page without scripts or fonts of its own.

Texts are outputs of models and count as hostile: of what latex2mathml makes, only known elements and
attributes with harmless values reach the page. What it cannot convert is shown as it is written.
"""

import html
import re
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markupsafe import Markup, escape

MAX_TEXT, MAX_FORMULAS = 8000, 60  # characters in which formulas are looked for; formulas of a text
MAX_SOURCE, MAX_DEPTH = 1500, 50  # of a formula
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_ENVIRONMENTS = r"(?:align|equation|gather|eqnarray|multline|array|cases|[pbvBV]?matrix)(?:ed)?\*?"
# Drawings, and dollars that are no delimiters, come first: they are text. The rules for `$` are Pandoc's, and
# spaces are next to it only with a command, `=` or `^` between: `$5 and $6` are amounts of money.
_FORMULA = re.compile(
    r"(?P<text>\[asy\].*?(?:\[/asy\]|\Z)|\\\\)|\$\\(?P<price>\$)\$|\\(?P<sign>[$%])"
    r"|\$\$(?P<block>(?:\\.|[^$\\])+)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<inline>.+?)\\\)"
    r"|\$(?! )(?P<dollar>(?:\\.|[^$\\])+)(?<! )\$(?!\d)|\$(?=[^$]*[\\=^])(?P<spaced>(?:\\.|[^$\\])+)\$(?!\d)"
    rf"|(?P<environment>\\begin\{{(?P<name>{_ENVIRONMENTS})\}}.+?\\end\{{(?P=name)\}})"
    rf"|(?P<boxed>\\boxed *{_GROUP})",
    re.DOTALL,
)
# Without delimiters: a gold answer such as \frac{1}{2}, and LaTeX between Chinese characters.
_BARE = re.compile("(?P<bare>[!-~](?:[ -~]*[!-~])?)")
_COMMAND = re.compile(r"\\[a-zA-Z!,]|[\^_]\{")
_WORDS = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{2,}[,.;]? +[A-Za-z]{2,}")  # prose, not a formula
_NO_WORDS = re.compile(rf"\\(?:text\w*|mbox|hbox|mathrm|operatorname|begin|end) *{_GROUP}")
_REFUSED = re.compile(r"\\(?:(?:re)?newcommand|def|DeclareMathOperator|newenvironment|unicode)(?![a-zA-Z])")
# Other spellings of what latex2mathml knows; the ends of an equation are those of the formula.
_SPELLINGS = (
    (r"\\(?:(?:begin|end)\{equation\*?\}|displaylimits|nonumber|label\{[^{}]*\}|hfill)|@\{[^{}]*\}", ""),
    (r"\\(begin|end)\{(?:align(?:ed|at)?|gather(?:ed)?|eqnarray|multline|split)\*?\}", r"\\\1{align*}"),
    (r"\\(begin|end)\{tabular\}", r"\\\1{array}"),
    (r"\\(begin|end)\{[dr]cases\}", r"\\\1{cases}"),
    (r"\\begin\{([pbvBV]matrix)\}.*?\\end\{\1\}", r"{\g<0>}"),  # with its fences, one base of an exponent
    (r"\\cline\{[\d-]*\}", r"\\hline"),
    (r"\\textbar(?:\{\})? ?", "|"),
    (r"\\text([lg])(?:ess|reater)(?:\{\})? ?", r"\\\1t "),
    (r"\\arg(?![a-z])", r"\\operatorname{arg}"),
    (r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))", r"\\text{,}"),  # no space after it
    (r"(?<!\\)((?:\\\\)*)%", r"\1\\%"),  # else it begins a comment, as in `50%`
)
_PARTS = dict.fromkeys(("mfrac", "mroot", "msub", "msup", "munder", "mover"), 2)  # children
_PARTS |= {"msubsup": 3, "munderover": 3}
_ELEMENT = re.compile("m(?:row|i|n|o|text|space|sqrt|table|tr|td|style|padded|phantom|enclose)")
# Lengths are short, so that no part of a formula covers what is next to it.
_ATTRIBUTE = re.compile(
    r" (?:stretchy|fence|accent|movablelimits|largeop|displaystyle|form|columnalign|mathvariant|notation)"
    r'="[a-z -]+"| (?:linethickness|minsize|maxsize|lspace|rspace|width|height|depth|scriptlevel)'
    r'="(?:[+-]?0?\.\d+(?:em|ex|pt)|\d(?:\.\d+)?(?:em|ex|pt|px)?)"'
)
_RULE, _MINUS = "&#x02015;", "&#x02212;"  # as latex2mathml writes symbols


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
    source = found[kind]
    if kind in ("text", "price", "sign"):
        return escape(source)
    is_prose = kind in ("dollar", "spaced", "bare") and _WORDS.search(_NO_WORDS.sub("", source))
    is_power = "^" in source and written == found.string.strip()
    if is_prose or (kind == "bare" and not is_power and not _COMMAND.search(source)):
        return escape(written)
    return _formula(source, written, block=kind in ("block", "bracket", "environment")) or escape(written)


@lru_cache(maxsize=4096)
def _formula(source: str, written: str, *, block: bool) -> Markup | None:
    """A formula as MathML; None if it cannot be converted whole."""
    plain = re.sub(r"\\.", "", source, flags=re.DOTALL)
    # Definitions could repeat themselves without end.
    if len(source) > MAX_SOURCE or plain.count("{") != plain.count("}") or _REFUSED.search(source):
        return None
    for spelling, known in _SPELLINGS:
        source = re.sub(spelling, known, source, flags=re.DOTALL)
    with suppress(Exception):  # of many kinds, its own and those of indexing, for what it does not know
        row = convert_to_element(source.strip(), display="block" if block else "inline")[0]
        for before, sign in pairwise(row.iter()):
            if sign.text == _MINUS and before.tag == "mo" and before.text not in (")", "]", "|"):
                sign.set("form", "prefix")  # not a difference, so no space after it
        if shown := _mathml(row):
            note = Markup('<annotation encoding="application/x-tex">{}</annotation>').format(written)
            display = Markup(' display="block"') if block else ""
            return Markup("<math{}><semantics>{}{}</semantics></math>").format(display, shown, note)
    return None


def _mathml(element: Element, depth: int = 0) -> Markup | None:
    """An element with all below it; None if it is not one we know, lacks a part or shows a command."""
    tag, text = element.tag, html.unescape(element.text or "")
    below = [_mathml(child, depth + 1) for child in element] if depth < MAX_DEPTH else [None]
    is_known = (tag in _PARTS or _ELEMENT.fullmatch(tag)) and (tag == "mtext" or not _COMMAND.search(text))
    if not is_known or None in below or _PARTS.get(tag, len(below)) != len(below):
        return None
    if tag in ("mover", "munder") and element[1].text == _RULE:  # which no browser stretches
        return Markup('<mrow class="{}">{}</mrow>').format(tag[1:], below[0])
    inner = Markup("").join([escape(text), *(part for part in below if part is not None)])
    if tag == "mrow" and len(below) == 1:
        return inner
    given = (Markup(' {}="{}"').format(*one) for one in element.items())
    attributes = Markup("").join(one for one in given if _ATTRIBUTE.fullmatch(one))
    return Markup("<{0}{1}>{2}</{0}>").format(tag, attributes, inner)
