"""One spelling for the many ways to write the same answer: Unicode, LaTeX, plain text, words.

The result is LaTeX of a small vocabulary (`\\frac`, `\\sqrt`, `\\cdot`, `\\le`, ...); words remain words.
Each pattern takes time linear in the text: as in `extraction`, by possessive repetitions and starts of runs.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate

from megatron_mathcpt.answers.numerals import arabic_numerals, number_words, repeating_decimals, written

_YES = "yes true correct right 是 是的 对 对的 正确 正确的 真 真命题 能 可以 成立".split()  # noqa: SIM905
_NO = "no false incorrect wrong 否 不是 错 错的 错误 错误的 不正确 不对 假 假命题 不能 不可以 不成立".split()  # noqa: SIM905
_SYNONYMS = dict.fromkeys(_YES, "yes") | dict.fromkeys(_NO, "no")
_NAME_PAIRS = (  # each name, and the one it is replaced by, in this order
    "雉:锥 星期:周 礼拜:周 周天:周日 非:不 直角等腰:等腰直角 立方体:正方体 互相: 单调: 递增:增 递减:减 "
    "增函数:增 减函数:减 正三角形:等边三角形 正四边形:正方形 矩形:长方形 圆柱体:圆柱 圆锥体:圆锥 球体:球"
)
_SAME_NAMES = dict(pair.split(":") for pair in _NAME_PAIRS.split())
_FILLER = re.compile(r"\b(?:an?|the|but|is|are|it|condition|its)\b|[\s.,;:'\"()\-]|[的而但是]|条件")
_EXIST = r"(?:the |this )?(?:given )?(?:equation|inequality|system|problem|it)?s? ?"
_EXIST += r"(?:has|have|there (?:is|are|exists?))? ?"
_ASKED = "(?:[原此该]|这个?|所求|关于x的|分式|一元二次|二元一次)*(?:方程|不等式)?组?(?:的?解集?(?:为|是))?"
_PHRASES = {
    _EXIST + r"no (?:such |real )?(?:solutions?|roots?)(?: exists?)?|none|(?:the )?empty set": "\\emptyset",
    _ASKED + r"(?:(?:无|没有)(?:实数?)?(?:解|根)|空集)": "\\emptyset",
    r"(?:all|any|every) (?:reals?|real numbers?)|(?:[a-z](?:可以?)?(?:取|为|是)?)?(?:全体|任意|任何"
    r"|一切|所有)的?实数|实数集": "\\mathbb{R}",
    r"undefined|does not exist|dne|无意义|(?:这样的|满足条件的|符合条件的)?[^\s存不有无]{0,6}不存在"
    r"(?:(?:这样|满足条件|符合条件)的[^\s存不有无]{1,6})?": "undefined",
    f"{_EXIST}infinitely many(?: solutions?| roots?)?|{_ASKED}有?(?:无数个?|无穷多个?)解": "infinitely many",
}


def words_as_symbols(text: str) -> str:
    """Replace a phrase that is the whole answer by its symbol: no solution, all real numbers, seven."""
    lower = text.lower().strip()
    for pattern, symbol in _PHRASES.items():
        if re.fullmatch(pattern, lower):
            return symbol
    return text


def is_words(text: str) -> bool:
    """Whether the answer is prose: words or Chinese characters, no digits, no LaTeX, no operators."""
    return bool(re.search(r"[A-Za-z]{3,}|[一-鿿]", text)) and not re.search(r"[\d\\=+^_<>/|]", text)


def same_words(first: str, second: str) -> bool:
    """Whether two texts differ only in case, articles, fillers, synonyms and the order of an enumeration."""
    one, two = (sorted(map(_canonical, re.split(r",|;|和|与|\band\b", text))) for text in (first, second))
    return one == two or _canonical(first) == _canonical(second)


def _canonical(text: str) -> str:
    text = text.lower().strip()
    text = _SYNONYMS.get(text, text)
    for name, other in _SAME_NAMES.items():
        text = text.replace(name, other)
    return _FILLER.sub("", text) or text


_TIME = re.compile(
    r"(?P<day>上午|早上|早晨|清晨|凌晨|中午|下午|傍晚|晚上|夜里|夜晚)?(?P<hour>\d{1,2})"
    r"(?P<sign>\s*:\s*|[点时](?:钟|整)?)?(?:(?P<minute>\d{1,2})分?|(?P<part>半"
    r"|[一三13]刻))?(?:\s*(?P<half>[ap])\.?\s*(?:m\.?)?)?"
)
_PARTS_OF_HOUR = {"半": 30, "一刻": 15, "1刻": 15, "三刻": 45, "3刻": 45}


def same_time(first: str, second: str) -> bool | None:
    """Compare two times of day, 4:30 p.m., 下午4点半; None unless one of them can only be one."""
    found = [re.fullmatch(_TIME, text.lower()) for text in (first, second)]
    times = [time for time in found if time and (bool(time["minute"] or time["part"]) <= bool(time["sign"]))]
    halves = [_half(time) for time in times]
    signs = [(time["sign"] or "").strip() for time in times]
    # 4:30 alone may be a ratio, 4点 a count and 14时30分 a duration: not if the other is a time.
    if len(times) < 2 or not (any(halves) or (all(signs) and set(signs) != {":"})):
        return None
    hours = [int(time["hour"]) for time in times]
    minutes = [int(time["minute"] or _PARTS_OF_HOUR.get(time["part"], 0)) for time in times]
    if max(hours) > 24 or max(minutes) > 59:
        return None
    if times[1]["day"] and halves[1] == "p" and hours[0] < 12 and not halves[0]:
        return False  # where days are of 24 hours, 3:30 is not 下午3:30
    pairs = [*zip(hours, halves, strict=True)]
    if any(hour >= 12 and not half for hour, half in pairs):
        halves = [half or ("p" if 12 <= hour < 24 else "a") for hour, half in pairs]
    same_half = len(set(filter(None, halves))) <= 1
    return same_half and len(set(minutes)) == 1 and len({hour % 12 for hour in hours}) == 1


def _half(time: re.Match[str]) -> str:
    day, late = time["day"], int(time["hour"]) in (12, 24)
    if not day:
        return time["half"] or ""
    if day == "中午":
        return "a" if int(time["hour"]) in (10, 11) else "p"
    return "p" if day in ("下午", "傍晚") or (day[0] in "晚夜" and not late) else "a"


_BINARY = "ne approx cup cap in pm mp".split()  # noqa: SIM905
_NAMES = "pi alpha beta gamma theta lambda mu phi omega Delta infty emptyset angle triangle".split()  # noqa: SIM905
# Symbols that have a LaTeX name; applied after NFKC, which has already folded full-width forms.
_SYMBOLS = {
    **{"−–—﹣‐‑": "-", "÷⁄∕": "/", "∶": ":", "、": ",", "〈⟨": "(", "〉⟩": ")", "′’": "'", "。": "."},
    **{"×·⋅∙•✕": " \\cdot ", "≤⩽≦": " \\le ", "≥⩾≧": " \\ge ", "°˚º": "^\\circ ", "∧": " and ", "∨": " or "},
    **{"∛": "\\sqrt[3]", "√": "\\sqrt", "ℝ": "\\mathbb{R}"},
    **{sign: f" \\{name} " for sign, name in zip("≠≈∪∩∈±∓", _BINARY, strict=True)},
    **{letter: f"\\{name} " for letter, name in zip("παβγθλμφωΔ∞∅∠△", _NAMES, strict=True)},
}
_TRANSLATION = str.maketrans({sign: text for signs, text in _SYMBOLS.items() for sign in signs})
_CHARACTERS = {"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "div": "/", "colon": ":"}
_CHARACTERS |= {"langle": "(", "rangle": ")"}

# Commands with the same meaning, or none; longer patterns first where one is the start of another.
_REWRITES = (
    (r"\\(?:left|right)\s*\.|\\!\s*", ""),
    (r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?)(?![A-Za-z])", ""),
    (r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![A-Za-z])", ""),
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
    (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])|\\\|", "|"),
    (rf"\\({'|'.join(_CHARACTERS)})(?![A-Za-z])", lambda m: _CHARACTERS[m[1]]),
    (r"\^\s*\{\s*\\(?:circ|degree)\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\infin(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
    (r"\\(?:varnothing|empty)(?![A-Za-z])|\\phi\s*$(?<=^\\phi)", r"\\emptyset "),
    (r"\\(?:math(?:bf|bb|rm)|Bbb|bold)\s*+(?:\{\s*+)?R\s*\}?(?![A-Za-z])|\\R(?![A-Za-z])", r"\\mathbb{R}"),
    (r"\\(?:land|wedge)(?![A-Za-z])", " and "),
    (r"\\(?:lor|vee)(?![A-Za-z])", " or "),
    (r"\\(?:dots|ldots|cdots|dotsc)(?![A-Za-z])|\.\.\.|…", r"\\dots "),
    (r"\\var(theta|phi|epsilon|pi|rho|sigma)(?![A-Za-z])", r"\\\1"),
    (r"\\operatorname\s*+(?:\*\s*+)?\{\s*([a-z]+)\s*\}", r"\\\1 "),
    (r"\\%|(?<!\s)\s*+(?<![A-Za-z])(?:percent|per cent|pct)(?![A-Za-z])", "%"),
    (r"(?<=[\d)}])\s*(?:degrees?|deg)(?![A-Za-z])", r"^\\circ "),
    (r"\+/-|\+-(?=\s*(?:\d|\\sqrt))", r" \\pm "),
    (r"(?<=[)\]])\s*[Uu]\s*(?=[(\[])|(?<![A-Za-z])union(?![A-Za-z])", r" \\cup "),
    (r"(?<![A-Za-z\\])(?:sqrt)(?![A-Za-z])", r"\\sqrt"),
    (r"(?<![A-Za-z\\])(?:[Pp]i)(?![A-Za-z])", r"\\pi "),
    (r"\\(?:because|therefore)(?![A-Za-z])|∴|∵", " "),
    (r"\\(?:approx|approxeq|thickapprox|simeq|doteq|sim)(?![A-Za-z])|≒", r" \\approx "),
    (r"\\(?:prime|textquotesingle)(?![A-Za-z])", "'"),
    (r"\^\s*\{\s*('[\s']*)\}|\^\s*(?=')", r"\1"),
    (r"''|″|\"(?=\s*$)", "''"),
    (r"\\equiv(?![A-Za-z])|≡", r" \\equiv "),
    (r"\(?\s*\\?(?<![A-Za-z])[pb]?mod(?![A-Za-z])\s*(?:\{([^{}]*)\}|(\w+))\s*\)?", r" \\pmod{\1\2}"),
    (
        r"\{?\s*\{?\s*(?<![\w+\-])([\w+\-]+)\s*\}?\s*\\?(?<![A-Za-z])choose(?![A-Za-z])\s*\{?\s*([\w+\-]+)\s*\}?\s*\}?",
        r"\\binom{\1}{\2}",
    ),
    (
        r"(?:\{\s*\}\s*|(?<![\w)}]))[_^]\s*\{?(\d+)\}?\s*([CP])_\s*\{?(\d+)\}?|(?<![\w.\\])(\d+)([CP])(\d+)(?!\w)",
        r"\2\5_{\1\4}^{\3\6}",
    ),
    (r"(?<![\w.)}])(\d+)/(\d+)\s*%", r"\\frac{\1}{\2}%"),
    (r"\\textcircled\s*\{?(\d+)\}?", r"\\label{\1}"),
    (r"\\#", "#"),
    (r"\\implies|\\Rightarrow|\\to(?![A-Za-z])|⇒|→", " , "),
)
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]
# A brace over equations is a list of them.
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{d?cases\}(.*?)\\end\s*\{d?cases\}"
    r"|\\\{\s*\\begin\s*\{(?:array|aligned)\}(?:\s*\{[lcr]+\})?(.*?)\\end\s*\{(?:array|aligned)\}",
    re.DOTALL,
)
_CONDITION = (
    r"(?:\s*(?:&|,?\s*(?:if|when|for|当)(?![a-z])|,)[\s,&]*|\s*(?=\())(?!\s*=)"
    r"((?:\(|if|when|for|当)?[^&]*?(?:<|>|\\[lg]e|=|\\ne|\\in|otherwise|else|其|even|odd|[奇偶整]).*)"
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|boldsymbol|boxed"
    r"|fbox|ensuremath)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_PREFIX = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then|finally|the|an?(?=\s+(?!and|or|is)[A-Za-z]{2})|final|correct|answers?|"
    r"is|are|:|it's|it is|about|approximately|roughly|exactly|equals?|equal to|we (?:get|have|find)|"
    r"solutions?|values? of)(?![A-Za-z])\s*,?\s*|"
    r"(?:综上(?:所述)?|所以|因此|于是|从而|故|则|解得|可得|得到|得|即|约为|大约|约|答案|最终|正确|应|的"
    r"|是|为|等于|共有|一共有|一共|总共|共|有|答|解|原式|值|结果|选项|选择|应选|选|填)\s*[:,=]?\s*|"
    r"(?:点|(?:the )?point\s*)(?=\(|[A-Z]'?\s*\()|位于|线段(?=[A-Z])|在(?=第)|(?:[:=]|\\approx)\s*)",
    re.IGNORECASE,
)
_STOP = re.compile(r"(?<!\\)[,;:?]|\.|(?<![\d)}a-z!])!")
_TICKS = dict.fromkeys("√✓✔☑", "正确") | dict.fromkeys("×✗✘✕╳", "错误")


def normalize(text: str) -> str:
    """Rewrite `text` in the spelling that the rules read, without any mathematics."""
    if not text.isascii():
        # Before NFKC, which makes plain digits of superscripts, circled numbers and one-character fractions.
        text = re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+)", r"^{\1}", text)
        text = re.sub("([₀₁₂₃₄₅₆₇₈₉ₙ]+)", r"_{\1}", text)
        text = re.sub("([①-⑳])", lambda m: f"\\label{{{ord(m[1]) - 0x245F}}}", text)  # numbered statements
        text = re.sub(r"(\d)\u0305", r"\\overline{\1}", text)
        text = re.sub(r"(\d)\u0307", r"\\dot{\1}", text).replace("\u0307", "")
        text = re.sub("([\u00bc-\u00be\u2150-\u215e\u2189])", r"\\frac(\1)", text)
        text = unicodedata.normalize("NFKC", text)
        text = re.sub("\\\\frac\\((\\d+)\u2044(\\d+)\\)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)  # bold of Markdown
    text = _TICKS.get(text.strip(), text)
    text = _currency(text)
    text = text if text.isascii() else text.translate(_TRANSLATION)
    text = re.sub(r"\\sqrt(?=[0-9.])\s*([0-9]+(?:\.[0-9]+)?)", r"\\sqrt{\1}", text)
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    boxed = re.fullmatch(r"\s*\\(?:boxed|fbox)\s*(\{.*\})\s*", text)
    text = boxed[1][1:-1] if boxed and closes_at_end(boxed[1]) else text
    for _ in range(4):  # wrappers inside wrappers
        text = _WRAPPER.sub(_unwrap, text)
    text = _SYSTEM.sub(_system, text)
    text = re.sub(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d/])", lambda m: m.group().replace(" ", ""), text)
    text = repeating_decimals(arabic_numerals(text))
    text = re.sub(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})$", r"\1 \\cdot 10^{\2}", text.strip())
    text = _trim(re.sub(r"\s+", " ", text))
    for pattern, replacement in _COMPILED_FORMS:
        text = pattern.sub(replacement, text)
    text = number_words(text)
    text = re.sub(r"^<([^<>,]*+,[^<>]*+)>$", r"(\1)", text)  # a vector in angle brackets
    for _ in range(6):  # "So the answer is" is four prefixes
        if (found := _PREFIX.match(text)) and text[found.end() :] not in ("", "的"):
            text = _trim(text[found.end() :])
    return text


_ORDERS = {
    **dict.fromkeys(("大于等于", "大于或等于", "不小于", "不低于", "不少于"), "\\ge"),
    **dict.fromkeys(("小于等于", "小于或等于", "不大于", "不超过", "不多于"), "\\le"),
    **{"不等于": "\\ne", "大于": ">", "小于": "<", "等于": "="},
}
_DIGITS = "two three four five six seven eight nine ten".split()  # noqa: SIM905
_BASES = {word: str(base) for base, word in enumerate(_DIGITS, start=2)}
_BASES |= {"twelve": "12", "sixteen": "16"}
_BASE = rf"({'|'.join(_BASES)}|1[0-6]|[2-9])"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*+"
_FORMS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # Ends of an interval left out, as in France: ]0,1[.
    (r"([\[\]])([^\[\]()&,;]+)[,;]([^\[\]()&,;]+)([\[\]])", lambda m: _outward(m)),  # noqa: PLW0108 - see below
    # 22^\circ 30' 15''
    (
        r"(?<!\d)(\d+(?:\.\d+)?)\s*(?:\^\\circ|度)\s*(?:(\d+(?:\.\d+)?)\s*(?:'(?!')|分|minutes?))?"
        r"\s*(?:(\d+(?:\.\d+)?)\s*(?:''|秒|seconds?))?(?![\d'])",
        lambda m: _degrees(m),  # noqa: PLW0108 - defined below
    ),
    # 3比2, 3 to 2
    (r"(?<=[\d}])\s*比\s*(?=[\d\\])", ":"),
    (r"^(\d+)((?: to \d+)+)$", lambda m: m[1] + m[2].replace(" to ", ":")),
    (
        r"零([上下])\s*(\d+(?:\.\d+)?)\s*(?:摄氏度|度|\^\\circ ?C?)?",
        lambda m: ("-" if m[1] == "下" else "") + m[2] + "^\\circC",
    ),
    (r"^(\d+(?:\.\d+)?.*?) below zero$", r"-\1"),
    (r"^(?:minus|negative) +(?=[\d\\])", "-"),
    (r"(?<=[\d}])的(?:全体|一切|所有)?实数$", ""),
    (r"(?<!\d)(\d+(?:\.\d+)?)\s*‰", r"\\frac{\1}{1000}"),
    (rf"(?<=[\w)}}])\s*({'|'.join(_ORDERS)})\s*(?=[-\d\\A-Za-z(])", lambda m: f" {_ORDERS[m[1]]} "),
    (rf"(?:^|(?<=;))\s*({'|'.join(_ORDERS)})\s*(?=$|;)", lambda m: _ORDERS[m[1]]),
    (r"([a-z])_\{?1\}?\s*=\s*\1_\{?2\}?\s*=", r"\1="),  # a double root
    # 3块6, 3元整, 5月1号
    (r"^[A-Za-z] ?\\in ?(?=\\\{[^|:]*$)", ""),  # x \in \{1, 2\}
    (r"^all real numbers (?:except|other than) (?:for )?(?:[a-z]\s*=\s*)?([^\s,]+)$", r"x \\ne \1"),
    (r"^(\d+)(?:st|nd|rd|th)$", r"\1"),
    (r"^(\d+) (?:out of|in) (\d+)$", r"\\frac{\1}{\2}"),
    (r"(?<=\d)[块元](\d)毛?$", r".\1元"),
    (rf"^({_MONTH}) (\d\d?)(?:st|nd|rd|th)|^(\d\d?)(?:st|nd|rd|th)?(?: of)? ({_MONTH})", r"\1\4 \2\3"),
    (r"^(\d{4})-(?:0(\d)|(1[0-2]))-0?(\d|[12]\d|3[01])$", r"\1年\2\3月\4日"),
    (r"(?<=元)整$|(?<=[元角])零(?=\d)|(?<=\d)左右$", ""),
    (r"(?<=月)(\d+)号", r"\1日"),
    # (4343)_6, 4343 base 6, 六进制4343
    (r"\((\d[\dA-F]*)\)\s*_|(?<=\d)\s*_\s*(?=\d)", lambda m: f"{m[1] or ''}_"),
    (rf"(?<=[\dA-F])\s*_\s*\{{?\s*\(?\s*{_BASE}\s*\)?\s*\}}?$", lambda m: f"_{{{_BASES.get(m[1], m[1])}}}"),
    (
        rf"^([\dA-F]+)\s*\(?\s*(?:in )?base[ -]{_BASE}\s*\)?$",
        lambda m: f"{m[1]}_{{{_BASES.get(m[2], m[2])}}}",
    ),
    (
        r"^(\d+)进制数?:?\s*([\dA-F]+)$|^([\dA-F]+)\s*\(?(\d+)进制数?\)?$",
        lambda m: f"{m[2] or m[3]}_{{{m[1] or m[4]}}}",
    ),
    (
        r"^(?=\d*[A-F])([\dA-F]{2,12})_\{(1[1-6])\}$",
        lambda m: str(int(m[1], int(m[2])) if max(m[1]) < "GABCDEFG"[int(m[2]) - 9] else m[0]),
    ),
)
_COMPILED_FORMS = [(re.compile(pattern), replacement) for pattern, replacement in _FORMS]


def _outward(match: re.Match[str]) -> str:
    opening, first, second, closing = match.groups()
    if (opening, closing) == ("[", "]"):
        return match[0]
    return f"{'[' if opening == '[' else '('}{first},{second}{']' if closing == ']' else ')'}"


def _degrees(match: re.Match[str]) -> str:
    if not (match[2] or match[3]):
        return f"{match[1]}^\\circ "
    degrees, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    return written(degrees + minutes / 60 + seconds / 3600) + "^\\circ "


def _currency(text: str) -> str:
    # Dollar signs in pairs are TeX's; a single one before a number is money.
    text = re.sub(r"\\[()\[\]]", " ", text).replace("\\$", " dollar ")
    if text.count("$") == 1:
        text = re.sub(r"(?:US)?\$(?=\s*[\d.])", " dollar ", text)
    text = re.sub(r"^\s*-\s*dollar\s+(?=[\d.])", " dollar -", text)
    text = text.replace("$", " ").replace("£", " pound ").replace("€", " euro ").replace("¢", " cents")
    return re.sub(r"[¥元]\s*(?=\d)", " yuan ", text)


def _system(match: re.Match[str]) -> str:
    """Write a brace as a list of equations, or as a function by cases: each row a value and its condition."""
    pieces = re.split(r"\\\\(?:\[[^\]]*\])?", match[1] or match[2] or "")
    rows = [row.strip() for row in pieces if row.strip(" ,;")]
    parts = [re.fullmatch(r"((?:[^&=<>,]|,(?=\d))*?)" + _CONDITION, row.strip(" ,;")) for row in rows]
    if rows and all(parts) and all(part and part[1].strip() for part in parts):
        cases = "\\\\".join(f"{part[1].strip()}&{part[2].strip(' &')}" for part in parts if part)
        return f"\\begin{{cases}}{cases}\\end{{cases}}"
    return ", ".join(rows).replace("&", " ")


def _unwrap(match: re.Match[str]) -> str:
    inside = match.group(1)
    # \mathrm{N}_{1} is a symbol, \text{ cm} a word.
    glued = re.fullmatch(r"[A-Za-z]", inside.strip())
    return inside.strip() if glued and not inside.startswith(" ") else f" {inside} "


def _trim(text: str) -> str:
    # Punctuation at the ends, quotes, and braces around the whole, until nothing changes.
    previous = None
    while text != previous:
        previous = text
        text = text.strip().strip('"“”`').strip()
        end = len(text)
        while end and _STOP.match(text, end - 1):
            end -= 1
        text = text[:end]
        text = text.removeprefix("*").removesuffix("*")
        if text.startswith("{") and text.endswith("}") and closes_at_end(text):
            text = f"\\{{{text[1:-1]}\\}}" if re.search(r"[,|;]", text) else text[1:-1]
    return text


def closes_at_end(text: str, opening: str = "{", closing: str = "}") -> bool:
    """Whether the first bracket of `text` is closed by its last character."""
    depths = list(accumulate((sign in opening) - (sign in closing) for sign in text.lstrip("\\")))
    return 0 in depths and depths.index(0) == len(depths) - 1
