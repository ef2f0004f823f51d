"""Chinese numerals as Arabic ones: 三分之一, 百分之五十, 一百二十三, 1.5万, 3亿."""

import re
from fractions import Fraction

_DIGITS = {
    "零": 0,
    "〇": 0,
    "一": 1,
    "二": 2,
    "两": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
}
_TENS = {"十": 10, "百": 100, "千": 1000}
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
    return re.sub(rf"^(负?)({_INTEGER})(?=$|[^一-鿿]|[个只本人元米岁天名件条张辆棵次种倍度])", _integer, text)


def _integer(match: re.Match[str]) -> str:
    return ("-" if match.group(1) else "") + _read(match.group(2))


def _fraction(match: re.Match[str]) -> str:
    whole, bottom, root, top = match.groups()
    above = f"\\sqrt{{{_read(top)}}}" if root else _read(top)
    return (_read(whole) if whole else "") + f"\\frac{{{above}}}{{{_read(bottom)}}}"


def _scaled(match: re.Match[str]) -> str:
    factor = 1
    for name in match.group(2):
        factor *= _TENS.get(name) or _LARGE[name]
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
        elif character in _TENS:
            section += (digit or 1) * _TENS[character]
            digit = 0
        else:
            total = (total + section + digit) * _LARGE[character]
            section = digit = 0
    return str(total + section + digit)
