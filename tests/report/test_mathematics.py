"""LaTeX in a text becomes MathML: what is found, what stays text, and that no output of a model escapes."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mathcpt.report.mathematics import MAX_FORMULAS, MAX_SOURCE, mathematics

NOTE = re.compile(r'<annotation encoding="application/x-tex">(.*?)</annotation>', re.DOTALL)
FORMULA = re.compile(r"<math[^>]*>.*?</math>", re.DOTALL)
PLUS = "<mrow><mi>x</mi><mo>+</mo><mn>1</mn></mrow>"
HALF = "<mfrac><mn>1</mn><mn>2</mn></mfrac>"


def drawn(text: str) -> str:
    """The page's text, with {MathML} for each formula, without its annotation."""
    shown = NOTE.sub("", str(mathematics(text)))
    return re.sub(r"<math[^>]*><semantics>(.*?)</semantics></math>", r"{\1}", shown, flags=re.DOTALL)


FOUND = {
    "so $x+1$.": f"so {{{PLUS}}}.",
    r"so \(x+1\) or \[x+1\]": f"so {{{PLUS}}} or {{{PLUS}}}",
    "$$x+1$$ & $ x + 1 = 1 $": f"{{{PLUS}}} &amp; {{{PLUS[:-7]}<mo>=</mo><mn>1</mn></mrow>}}",
    r"\frac{1}{2}": f"{{{HALF}}}",
    r"$\dfrac12$": f'{{<mstyle displaystyle="true" scriptlevel="0">{HALF}</mstyle>}}',
    r"若 \frac{1}{2}, 则": f"若 {{<mrow>{HALF}<mo>,</mo></mrow>}} 则",
    r"so \boxed{x+1}": f'so {{<menclose notation="box">{PLUS}</menclose>}}',
    r"$\text{若 }x$": "{<mrow><mtext>若\u00a0</mtext><mi>x</mi></mrow>}",
    "$50%$": "{<mrow><mn>50</mn><mi>%</mi></mrow>}",
    "$10,000$": "{<mrow><mn>10</mn><mtext>,</mtext><mn>000</mn></mrow>}",
    "$=-1$": '{<mrow><mo>=</mo><mo form="prefix">−</mo><mn>1</mn></mrow>}',
    r"$\overline{x}$": '{<mrow class="over"><mi>x</mi></mrow>}',
    r"$x \textless{} 1$": "{<mrow><mi>x</mi><mo>&lt;</mo><mn>1</mn></mrow>}",
    r"\$5 is 50\%": "$5 is 50%",
    r"$\$$12.00": "$12.00",
}
TEXT = [
    "It costs $5 and $6, so $5/$6 and 3 * $2 = $6.",
    "the price is $5 and the other costs 7 $",
    "last_number a_b ^_^ C:\\users",
    r"$\frac{1}{2$ $\frac{1}$ $\nosuch{x}$ $x^$ \( \[ \boxed{ $$ \\",
    r"[asy] draw((0,0)--(1,1)); label($A$, (0,0)); [/asy]",
    r"$\newcommand{\a}{\a\a}\a$ $\def\a{x}\a$ $\htmlData{a=b}{x}$",
    r"\begin{align} x & = 1 \end{cases}",
    "$" + "x" * (MAX_SOURCE + 1) + "$",
    "$" + r"\sqrt" * 200 + "x$",
    "$" + "{" * 300 + "x" + "}" * 300 + "$",
]


@pytest.mark.parametrize("text", FOUND)
def test_formulas_are_drawn(text: str) -> None:
    assert drawn(text) == FOUND[text]


@pytest.mark.parametrize("text", TEXT, ids=range(len(TEXT)))
def test_other_text_stays_as_it_is(text: str) -> None:
    assert str(mathematics(text)) == html.escape(text).replace("&#x27;", "&#39;")


def test_the_source_is_kept_display_is_marked_and_formulas_are_bounded() -> None:
    assert str(mathematics("$$a<b$$")) == (
        '<math display="block"><semantics><mrow><mi>a</mi><mo>&lt;</mo><mi>b</mi></mrow>'
        '<annotation encoding="application/x-tex">$$a&lt;b$$</annotation></semantics></math>'
    )
    assert str(mathematics("$x$ " * (MAX_FORMULAS + 5))).count("<math") == MAX_FORMULAS
    assert mathematics(None) == mathematics("") == ""


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.attributes = list[str](), set[str](), dict[str, set[str]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = [
    "</math><script>alert(1)</script>",
    r"\text{</mtext></math><img src=x onerror=alert(1)>}",
    r"\text{&lt;script&gt;&#x3c;script>}&lt;img onerror=a&gt;",
    r"\href{javascript:alert(1)}{x} \style{background:url(//a)}{x} \class{a}{x} \cssId{b}{x}",
    r"\color{red\" onload=\"alert(1)}{x} \colorbox{red}{x} \fcolorbox{a}{b}{x}",
    r"\hspace{999em}x\hspace{-50em} \rule{99em}{99em} \raise{50em}{x} \Huge\Huge\Huge x",
    r"\verb|<script>| \unicode{x3c}script \begin{script}x\end{script} \operatorname{<b>}",
]


def check_tags(shown: str) -> Tags:
    tags = Tags()
    tags.feed(shown)
    tags.close()
    assert tags.open == []
    other = {tag for tag in tags.seen if not re.fullmatch(r"m[a-z]+", tag)}
    assert other <= {"semantics", "annotation"}
    known = {"display", "encoding", "class", "stretchy", "fence", "form", "accent", "notation", "mathvariant"}
    known |= {"displaystyle", "scriptlevel", "movablelimits", "largeop", "columnalign", "linethickness"}
    lengths = {"minsize", "maxsize", "lspace", "rspace", "width", "height", "depth"}
    assert tags.attributes.keys() <= known | lengths
    assert tags.attributes.get("class", set()) <= {"over", "under"}
    for name in lengths & tags.attributes.keys():
        sizes = [re.fullmatch(r"([+-]?[\d.]+)[a-z]*", value) for value in tags.attributes[name]]
        assert all(size and -1 < float(size[1]) < 10 for size in sizes)
    return tags


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("form", ["${}$", r"\[{}\]", r"\boxed{{{}}}", "{}"])
def test_no_markup_of_a_model_reaches_the_page(source: str, form: str) -> None:
    text = form.format(source)
    check_tags(str(mathematics(text)))
    for part in source.split(" "):
        check_tags(str(mathematics(form.format(part))))


PIECES = [
    "$",
    "$$",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    r"\$",
    "%",
    r"\\",
    "{",
    "}",
    "^",
    "_",
    " ",
    "x",
    "12",
    "&",
    "若",
]
PIECES += [
    r"\frac",
    r"\text{a",
    r"\left(",
    r"\right)",
    r"\begin{cases}",
    r"\end{cases}",
    r"\boxed{",
    "<b>",
    '"',
    "\n",
]


@settings(max_examples=120, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_whatever_is_written_no_character_is_lost(text: str) -> None:
    shown = str(mathematics(text))
    check_tags(shown)
    written = FORMULA.sub(lambda found: NOTE.search(found[0])[1], shown)  # type: ignore[index]
    shown, text = (re.sub(r"\\+\$", "$", one) for one in (html.unescape(written), text))
    assert shown == text


def test_nearly_all_formulas_of_a_real_set_are_drawn(benchmarks_dir: Path) -> None:
    lines = (benchmarks_dir / "gaokao" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for item in map(json.loads, lines) for text in (item["question"], item["answer"])]
    assert sum("<math" in mathematics(text) for text in texts) > 100
    left = [text for text in texts if re.search(r"\\[a-z]+\{|\$", FORMULA.sub("", str(mathematics(text))))]
    assert len(left) <= 4, left  # two have a dollar too few, one an environment half
