"""One spelling for the many ways to write the same answer: Unicode, LaTeX, plain text, words.

The result is LaTeX of a small vocabulary (`\\frac`, `\\sqrt`, `\\cdot`, `\\le`, ...); words remain words.
Each pattern takes time linear in the text: as in `extraction`, by possessive repetitions and starts of runs.
"""

import math
import re
import unicodedata
from fractions import Fraction
from itertools import accumulate

_YES = "yes true correct right 是 对 正确 真 真命题 能 可以".split()  # noqa: SIM905
_NO = "no false incorrect wrong 否 不是 错 错误 假 假命题 不能 不可以".split()  # noqa: SIM905
_SYNONYMS = dict.fromkeys(_YES, "yes") | dict.fromkeys(_NO, "no")
_FILLER = re.compile(r"\b(?:an?|the|but|is|are|it|condition|its)\b|[\s.,;:'\"()\-]|[的而但是]|条件")
_ONES = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(_ONES + _TEENS)},
    **dict.fromkeys(("half", "one half"), "\\frac{1}{2}"),
    **{"one third": "\\frac{1}{3}", "two thirds": "\\frac{2}{3}"},
    **{"one quarter": "\\frac{1}{4}", "three quarters": "\\frac{3}{4}"},
    **{word: str(10 * value) for value, word in enumerate(_TENS, start=2)},
    **{f"{t}-{_ONES[b]}": str(10 * a + b) for a, t in enumerate(_TENS, 2) for b in range(1, 10)},
}
_PHRASES = {
    r"(?:there (?:is|are) )?no (?:real )?solutions?|(?:the )?empty set": "\\emptyset",
    r"(?:方程)?无(?:实数)?解|空集": "\\emptyset",
    r"(?:all|any|every) reals?(?: numbers?)?|全体实数|任意实数|一切实数|实数集": "\\mathbb{R}",
    r"undefined|does not exist|dne|不存在|无意义": "undefined",
}


def words_as_symbols(text: str) -> str:
    """Replace a phrase that is the whole answer by its symbol: no solution, all real numbers, seven."""
    lower = text.lower().strip()
    for pattern, symbol in _PHRASES.items():
        if re.fullmatch(pattern, lower):
            return symbol
    if dozens := re.fullmatch(r"(\d+) dozens?", lower):
        return str(12 * int(dozens[1]))
    return _NUMBER_WORDS.get(lower, text)


def is_words(text: str) -> bool:
    """Whether the answer is prose: words or Chinese characters, no digits, no LaTeX, no operators."""
    return bool(re.search(r"[A-Za-z]{3,}|[一-鿿]", text)) and not re.search(r"[\d\\=+^_<>/|]", text)


def same_words(first: str, second: str) -> bool:
    """Whether two texts differ only in case, articles, fillers, synonyms and the order of an enumeration."""
    one, two = (sorted(map(_canonical, re.split(r",|;|和|与|\band\b", text))) for text in (first, second))
    return one == two or _canonical(first) == _canonical(second)


def _canonical(text: str) -> str:
    text = text.lower().strip()
    text = _SYNONYMS.get(text, text).replace("雉", "锥").replace("星期", "周").replace("非", "不")
    return _FILLER.sub("", text) or text


def same_time(first: str, second: str) -> bool | None:
    """Compare two times of day, 4:30 p.m.; None unless one of them has a.m. or p.m."""
    pattern = r"(\d{1,2})(?:\s*:\s*(\d{2}))?\s*([ap])?\.?\s*(?:m\.?)?"
    found = [re.fullmatch(pattern, text.lower()) for text in (first, second)]
    times = [(int(time[1]), int(time[2] or 0), time[3]) for time in found if time]
    halves = {half for _, _, half in times if half}
    if len(times) < 2 or not halves:
        return None  # 4:30 alone may be a ratio
    if any(hour > 12 for hour, _, _ in times):
        halves = {half or ("p" if hour >= 12 else "a") for hour, _, half in times}
    return len({(hour % 12, minute) for hour, minute, _ in times}) == len(halves) == 1


_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_POWERS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_NUMERAL = "[零〇一二两三四五六七八九十百千万亿]"
_INTEGER = f"(?<!{_NUMERAL}){_NUMERAL}++"
_PLAIN = rf"(?:{_INTEGER}|(?<!\d)\d++(?:\.\d++)?+)"
_DIGIT = "[零〇一二三四五六七八九]"
_LONGEST_NUMERAL = 40  # characters: ten times 万 is 10^40


def arabic_numerals(text: str) -> str:
    """Write Chinese numerals in digits, but not those that are part of a word."""
    # Most answers have none, and each pattern below scans the text.
    if not re.search("[零〇一二两三四五六七八九十百千万亿每又根]", text):
        return text
    decimals = rf"({_INTEGER})点({_DIGIT}+)"
    text = re.sub(decimals, lambda m: f"{_read(m[1])}.{''.join(str(_DIGITS[d]) for d in m[2])}", text)
    text = re.sub(rf"百分之({_PLAIN}(?:点{_DIGIT}+)?)", lambda m: f"{_read(m[1])}%", text)
    text = re.sub(rf"(?:({_PLAIN})又)?({_PLAIN})分之(根号)?({_PLAIN})", _fraction, text)
    text = re.sub(r"(?<=\d)又(?=\d+/\d|\\frac)", " ", text)  # of a mixed number
    text = re.sub(rf"根号({_PLAIN})", lambda m: f"\\sqrt{{{_read(m[1])}}}", text)
    scaled = r"(?<!\d)(\d++(?:,\d{3})*+(?:\.\d++)?+)\s*(万亿|亿|千万|百万|十万|万)(?![分])"
    text = re.sub(scaled, _scaled, text)
    tenths = "^([一二三四五六七八九])成([一二三四五六七八九])?$"  # 八成 and 八成五 are per cent
    text = re.sub(tenths, lambda m: f"{_DIGITS[m[1]]}{_DIGITS[m[2] or '零']}%", text)
    text = re.sub("^每(小时|分钟|秒|天|年|月|周|时)(.+)$", r"\2/\1", text)
    # 一个 is a count, 一次函数 a kind of function: only a numeral alone or before a unit is converted.
    alone = rf"^(负?)({_INTEGER})(?=$|[^一-鿿]|[个只本人元米岁天名件条张辆棵次种倍度])"
    return re.sub(alone, lambda m: ("-" if m[1] else "") + _read(m[2]), text)


def _fraction(match: re.Match[str]) -> str:
    whole, bottom, root, top = match.groups()  # Chinese names the denominator first
    above = f"\\sqrt{{{_read(top)}}}" if root else _read(top)
    return (_read(whole) if whole else "") + f"\\frac{{{above}}}{{{_read(bottom)}}}"


def _scaled(match: re.Match[str]) -> str:
    value = Fraction(match[1].replace(",", "")) * math.prod(_POWERS[name] for name in match[2])
    return str(value) if value.denominator == 1 else match.group()


def _read(text: str) -> str:
    if not re.fullmatch(_INTEGER, text):
        return text
    if len(text) > 1 and all(character in _DIGITS for character in text):  # 一二三, as 123
        return "".join(str(_DIGITS[character]) for character in text)
    if len(text) > _LONGEST_NUMERAL:
        return text
    # A section is what precedes 万 or 亿; 十 alone is ten.
    total, section, digit = 0, 0, 0
    for character in text:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif _POWERS[character] < 10**4:
            section, digit = section + (digit or 1) * _POWERS[character], 0
        else:
            total, section, digit = (total + section + digit) * _POWERS[character], 0, 0
    return str(total + section + digit)


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
    (r"\\(?:because|therefore|approx|sim)(?![A-Za-z])|∴|∵", " "),
    (r"\\#", "#"),
    (r"\\implies|\\Rightarrow|\\to(?![A-Za-z])|⇒|→", " , "),
)
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]
_REPEATING = re.compile(
    r"(\d{1,20})\.(\d{0,20})(?:\\(?:overline|dot|bar)\s*\{(\d{1,20})\}(?!\d)"
    r"|(\\dot\s*\{\d\}\d{0,20}\\dot\s*\{\d\}))"
)
# A brace over equations is a list of them.
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{cases\}(.*?)\\end\s*\{cases\}"
    r"|\\\{\s*\\begin\s*\{(?:array|aligned)\}(?:\s*\{[lcr]+\})?(.*?)\\end\s*\{(?:array|aligned)\}",
    re.DOTALL,
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|boldsymbol|boxed"
    r"|fbox|ensuremath)"
    r"\s*\{([^{}]*)\}"
)
_PREFIX = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then|finally|the|an?(?=\s+(?!and|or)[A-Za-z]{2})|final|correct|answers?|"
    r"is|are|:|it's|it is|about|approximately|roughly|exactly|equals?|equal to|we (?:get|have|find)|"
    r"solutions?|values? of)(?![A-Za-z])\s*,?\s*|"
    r"(?:综上(?:所述)?|所以|因此|于是|从而|故|则|解得|可得|得到|得|即|约为|大约|约|答案|最终|正确|应|的"
    r"|是|为|等于|"
    r"共有|一共有|一共|总共|共|有|答|解|原式|值|结果|选项|选择|应选|选|填)\s*[:,=]?\s*|"
    r"[:=]\s*)",
    re.IGNORECASE,
)


def normalize(text: str) -> str:
    """Rewrite `text` in the spelling that the rules read, without any mathematics."""
    if not text.isascii():
        # Before NFKC, which makes plain digits of superscripts, circled numbers and one-character fractions.
        text = re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+)", r"^{\1}", text)
        text = re.sub("([₀₁₂₃₄₅₆₇₈₉ₙ]+)", r"_{\1}", text)
        text = re.sub("([①-⑳])", r"(\1)", text)  # numbered statements
        text = re.sub("([\u00bc-\u00be\u2150-\u215e\u2189])", r"\\frac(\1)", text)
        text = unicodedata.normalize("NFKC", text)
        text = re.sub("\\\\frac\\((\\d+)\u2044(\\d+)\\)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)  # bold of Markdown
    text = _currency(text)
    text = text if text.isascii() else text.translate(_TRANSLATION)
    text = re.sub(r"\\sqrt(?=[0-9.])\s*([0-9]+(?:\.[0-9]+)?)", r"\\sqrt{\1}", text)
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    boxed = re.fullmatch(r"\s*\\(?:boxed|fbox)\s*(\{.*\})\s*", text)
    text = boxed[1][1:-1] if boxed and closes_at_end(boxed[1]) else text
    for _ in range(4):  # wrappers inside wrappers
        text = _WRAPPER.sub(_unwrap, text)
    text = _SYSTEM.sub(lambda m: (m[1] or m[2] or "").replace("\\\\", ", ").replace("&", " "), text)
    text = re.sub(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d/])", lambda m: m.group().replace(" ", ""), text)
    text = _REPEATING.sub(_repeating, arabic_numerals(text))
    text = re.sub(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})$", r"\1 \\cdot 10^{\2}", text.strip())
    text = _trim(re.sub(r"\s+", " ", text))
    text = re.sub(r"^<([^<>,]*+,[^<>]*+)>$", r"(\1)", text)  # a vector in angle brackets
    for _ in range(6):  # "So the answer is" is four prefixes
        if (found := _PREFIX.match(text)) and found.end() < len(text):
            text = _trim(text[found.end() :])
    return text


def _repeating(match: re.Match[str]) -> str:
    # 0.1\overline{6} is (16 - 1) / 90.
    whole, fixed = match[1], match[2]
    period = match[3] or "".join(filter(str.isdigit, match[4]))
    bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
    return f"\\frac{{{int(whole + fixed + period) - int(whole + fixed)}}}{{{bottom}}}"


def _currency(text: str) -> str:
    # Dollar signs in pairs are TeX's; a single one before a number is money.
    text = re.sub(r"\\[()\[\]]", " ", text).replace("\\$", " dollar ")
    if text.count("$") == 1:
        text = re.sub(r"(?:US)?\$(?=\s*[\d.])", " dollar ", text)
    text = text.replace("$", " ").replace("£", " pound ").replace("€", " euro ")
    return re.sub(r"[¥元]\s*(?=\d)", " yuan ", text)


def _unwrap(match: re.Match[str]) -> str:
    inside = match.group(1)
    # \mathrm{N}_{1} is a symbol, \text{ cm} a word.
    glued = re.fullmatch(r"[A-Za-z]", inside.strip())
    return inside.strip() if glued and not inside.startswith(" ") else f" {inside} "


_STOP = re.compile(r"(?<!\\)[,;:?]|\.|(?<![\d)}a-z!])!")


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
