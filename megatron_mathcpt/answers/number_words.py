"""Answers in words, and numbers written in words: yes and no, seven, times of day, 三分之一, 3亿."""

import re
from fractions import Fraction

_YES = "yes true correct right 是 对 正确 真 真命题 能 可以".split()  # noqa: SIM905
_NO = "no false incorrect wrong 否 不是 错 错误 假 假命题 不能 不可以".split()  # noqa: SIM905
_SYNONYMS = dict.fromkeys(_YES, "yes") | dict.fromkeys(_NO, "no")
_FILLER = re.compile(r"\b(?:an?|the|but|is|are|it|condition|its)\b|[\s.,;:'\"()\-]|[的而但是]|条件")
_ONES = "one two three four five six seven eight nine".split()  # noqa: SIM905
_TEENS = (  # noqa: SIM905
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(("zero", *_ONES, *_TEENS))},
    **dict.fromkeys(("half", "one half"), "\\frac{1}{2}"),
    **{"one third": "\\frac{1}{3}", "two thirds": "\\frac{2}{3}"},
    **{"one quarter": "\\frac{1}{4}", "three quarters": "\\frac{3}{4}"},
    **{word: str(10 * value) for value, word in enumerate(_TENS, start=2)},
    **{f"{ten}-{one}": str(10 * a + b) for a, ten in enumerate(_TENS, 2) for b, one in enumerate(_ONES, 1)},
}
# Words with a symbol of their own.
_SYMBOLS = {
    r"(?:there (?:is|are) )?no (?:real )?solutions?|(?:the )?empty set": "\\emptyset",
    r"(?:方程)?无(?:实数)?解|空集": "\\emptyset",
    r"(?:all|any|every) reals?(?: numbers?)?|全体实数|任意实数|一切实数|实数集": "\\mathbb{R}",
    r"undefined|does not exist|dne|不存在|无意义": "undefined",
}


def words_as_symbols(text: str) -> str:
    """`text` with a phrase that is the whole answer as its symbol: no solution, all real numbers, seven."""
    lower = text.lower().strip()
    for pattern, symbol in _SYMBOLS.items():
        if re.fullmatch(pattern, lower):
            return symbol
    if dozens := re.fullmatch(r"(\d+) dozens?", lower):
        return str(12 * int(dozens.group(1)))
    return _NUMBER_WORDS.get(lower, text)


def is_words(text: str) -> bool:
    """Whether the answer is prose: words or Chinese characters, no digits, no LaTeX, no operators."""
    return bool(re.search(r"[A-Za-z]{3,}|[一-鿿]", text)) and not re.search(r"[\d\\=+^_<>/|]", text)


def same_words(first: str, second: str) -> bool:
    """Equal but for case, articles, fillers and synonyms; parts of an enumeration may change places."""
    parts = [
        sorted(_canonical(part) for part in re.split(r",|;|和|与|\band\b", text)) for text in (first, second)
    ]
    return parts[0] == parts[1] or _canonical(first) == _canonical(second)


def _canonical(text: str) -> str:
    text = text.lower().strip()
    text = _SYNONYMS.get(text, text).replace("雉", "锥").replace("星期", "周").replace("非", "不")
    return _FILLER.sub("", text) or text


def same_time(first: str, second: str) -> bool | None:
    """Compare two times of day, 4:30 p.m.; None unless one of them says which half of the day it is."""
    pattern = r"(\d{1,2})(?:\s*:\s*(\d{2}))?\s*([ap])?\.?\s*(?:m\.?)?"
    found = [re.fullmatch(pattern, text.lower()) for text in (first, second)]
    times = [(int(time[1]), int(time[2] or 0), time[3]) for time in found if time]
    if len(times) < 2 or not (times[0][2] or times[1][2]):
        return None
    clock = [(hour % 12, minute) for hour, minute, _ in times]
    afternoon = [half == "p" if half else hour >= 12 for hour, _, half in times]
    if any(hour > 12 for hour, _, _ in times):
        return clock[0] == clock[1] and afternoon[0] == afternoon[1]
    return clock[0] == clock[1] and len({half for _, _, half in times if half}) == 1


_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_POWERS = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "亿": 10**8}
_INTEGER = "[零〇一二两三四五六七八九十百千万亿]+"
_PLAIN = rf"(?:{_INTEGER}|\d+(?:\.\d+)?)"

_PERCENT = re.compile(rf"百分之({_PLAIN}(?:点[零〇一二三四五六七八九]+)?)")
_FRACTION = re.compile(rf"(?:({_PLAIN})又)?({_PLAIN})分之(根号)?({_PLAIN})")
_MIXED = re.compile(r"(?<=\d)又(?=\d+/\d|\\frac)")
_ROOT = re.compile(rf"根号({_PLAIN})")
_DECIMAL = re.compile(rf"({_INTEGER})点([零〇一二三四五六七八九]+)")
_SCALED = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)\s*(万亿|亿|千万|百万|十万|万)(?![分])")


def arabic_numerals(text: str) -> str:
    """`text` with every Chinese numeral in digits; a word that merely starts with one is left alone."""
    if not re.search("[零〇一二两三四五六七八九十百千万亿每又根]", text):
        return text
    text = _DECIMAL.sub(lambda m: f"{_read(m.group(1))}.{''.join(str(_DIGITS[d]) for d in m.group(2))}", text)
    text = _PERCENT.sub(lambda m: f"{_read(m.group(1))}%", text)
    text = _FRACTION.sub(_fraction, text)
    text = _ROOT.sub(lambda m: f"\\sqrt{{{_read(m.group(1))}}}", _MIXED.sub(" ", text))
    text = _SCALED.sub(_scaled, text)
    text = re.sub("^([一二三四五六七八九])成([一二三四五六七八九])?$", _tenths, text)
    text = re.sub("^每(小时|分钟|秒|天|年|月|周|时)(.+)$", r"\2/\1", text)
    # 一个 is a count, 一次函数 a kind of function: only a numeral that is alone or has a unit is read.
    return re.sub(
        rf"^(负?)({_INTEGER})(?=$|[^一-鿿]|[个只本人元米岁天名件条张辆棵次种倍度])",
        lambda m: ("-" if m.group(1) else "") + _read(m.group(2)),
        text,
    )


def _fraction(match: re.Match[str]) -> str:
    whole, bottom, root, top = match.groups()
    above = f"\\sqrt{{{_read(top)}}}" if root else _read(top)
    return (_read(whole) if whole else "") + f"\\frac{{{above}}}{{{_read(bottom)}}}"


def _scaled(match: re.Match[str]) -> str:
    factor = 1
    for name in match.group(2):
        factor *= _POWERS.get(name) or _LARGE[name]
    value = Fraction(match.group(1).replace(",", "")) * factor
    return str(value) if value.denominator == 1 else match.group()


def _tenths(match: re.Match[str]) -> str:
    """八成 and 八成五 as per cent."""
    return f"{_DIGITS[match.group(1)]}{_DIGITS[match.group(2)] if match.group(2) else 0}%"


def _read(text: str) -> str:
    """Digits of a numeral such as 一百二十三, 两千零五, 一二三; Arabic ones pass."""
    if not re.fullmatch(_INTEGER, text):
        return text
    if len(text) > 1 and all(character in _DIGITS for character in text):
        return "".join(str(_DIGITS[character]) for character in text)
    total, section, digit = 0, 0, 0
    for character in text:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _POWERS:
            section += (digit or 1) * _POWERS[character]
            digit = 0
        else:
            total = (total + section + digit) * _LARGE[character]
            section = digit = 0
    return str(total + section + digit)
