"""Answers in words: names, yes and no, conditions, times of day."""

import re

_SYNONYMS = {
    **dict.fromkeys(
        ("yes", "true", "correct", "right", "是", "对", "正确", "真", "真命题", "能", "可以"), "yes"
    ),
    **dict.fromkeys(
        ("no", "false", "incorrect", "wrong", "否", "不是", "错", "错误", "假", "假命题", "不能", "不可以"),
        "no",
    ),
}
_FILLER = re.compile(r"\b(?:an?|the|but|is|are|it|condition|its)\b|[\s.,;:'\"()\-]|[的而但是]|条件")
_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(("zero", *_ONES, *_TEENS))},
    "half": "\\frac{1}{2}",
    "one half": "\\frac{1}{2}",
    "one third": "\\frac{1}{3}",
    "two thirds": "\\frac{2}{3}",
    "one quarter": "\\frac{1}{4}",
    "three quarters": "\\frac{3}{4}",
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
    dozens = re.fullmatch(r"(\d+) dozens?", lower)
    if dozens:
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
    times = [
        re.fullmatch(r"(\d{1,2})(?:\s*:\s*(\d{2}))?\s*([ap])?\.?\s*(?:m\.?)?", text.lower())
        for text in (first, second)
    ]
    if not times[0] or not times[1] or not (times[0].group(3) or times[1].group(3)):
        return None
    halves = {found.group(3) for found in times if found and found.group(3)}
    clock = [(int(found.group(1)) % 12, int(found.group(2) or 0)) for found in times if found]
    afternoon = [
        found.group(3) == "p" if found.group(3) else int(found.group(1)) >= 12 for found in times if found
    ]
    if any(int(found.group(1)) > 12 for found in times if found):
        return clock[0] == clock[1] and afternoon[0] == afternoon[1]
    return clock[0] == clock[1] and len(halves) == 1
