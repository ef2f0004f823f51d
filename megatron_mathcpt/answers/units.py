"""Units of measure at the end (or money at the start) of an answer.

A unit may be omitted but must not differ: both sides are converted to base units, and two given units must
have the same dimensions. Counting words (个, ways, pieces) have no dimension: 36个 is 36, but not 36元.
"""

from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import regex as re

from megatron_mathcpt.answers.numerals import SCALE_WORDS

# dimension: {factor to the base unit: spellings}
_TABLE = {
    "length": {
        **{"1": "m meter metre 米", "1/100": "cm centimeter centimetre 厘米 公分"},
        **{"1/10": "dm decimeter decimetre 分米", "1/1000": "mm millimeter millimetre 毫米"},
        **{"1000": "km kilometer kilometre 千米 公里", "127/5000": "inch in 英寸"},
        **{"381/1250": "foot feet ft 英尺", "1143/1250": "yard yd 码", "201168/125": "mile mi 英里"},
    },
    "area": {"10000": "hectare ha 公顷"},
    "volume": {"1/1000": "liter litre l 升", "1/1000000": "ml milliliter millilitre 毫升 cc"},
    "mass": {
        **{"1": "kg kilogram 千克 公斤", "1/1000": "g gm gram 克", "1/1000000": "mg milligram 毫克"},
        **{"1000": "tonne 吨", "1/2": "斤"},
    },
    "pound": {"1": "pound lb", "1/16": "ounce oz"},
    "time": {
        **{"1": "s sec second 秒 秒钟", "60": "min minute 分钟", "3600": "h hr hour 小时 时"},
        **{"86400": "day 天 日", "604800": "week 周 星期"},
    },
    "year": {"1/12": "month 个月 月", "1": "year yr 年 岁"},
    "dollar": {"1": "dollar usd buck", "1/100": "cent 美分"},
    "yuan": {"1": "yuan rmb 元 块 块钱 元钱 人民币", "1/10": "角 毛"},
    "euro": {"1": "euro"},
    "degree": {"1": "^\\circ degree deg 度"},
    "radian": {"1": "rad radian 弧度"},
    "celsius": {"1": "^\\circC 摄氏度 celsius ^\\circCelsius"},
    "fahrenheit": {"1": "^\\circF fahrenheit ^\\circFahrenheit"},
    "speed": {"1397/3125": "mph", "5/18": "kmph kph"},
}
_COUNTERS = (  # noqa: SIM905
    "个 只 本 条 张 枚 头 名 位 人 件 支 枝 棵 株 辆 台 架 艘 片 根 颗 粒 朵 匹 双 桶 对 副 套 组 层 座 "
    "栋 间 道 题 页 次 种 种方法 种选法 种情况 行 列 排 批 箱 包 袋 瓶 杯 盒 筐 户 家 班 所 "
    "份 段 扇 盏 "  # of the next also plurals
    "way time piece people person item"
).split()
_NUMBERS = "倍 项 点 步 unit number integer value solution thing point".split()  # noqa: SIM905 - of any kind
_TRAILING = re.compile(
    r"\s+(?:old|tall|long|wide|high|deep|away|apart|in total|total|altogether|in all|each|more|left)$"
)
_RATE_OF_MONEY = re.compile(r"^(dollar|yuan|euro|pound)\s+(-?[\d.,]+)\s*((?:/|per |an? |each |every ).+)$")
_IN_BRACKETS = re.compile(r"(?<=[\d)}i%])\s*\(\s*([^()\d]{1,24}(?:\^\{?[23]\}?)?)\s*\)$")
_LONGEST = 60  # characters of a unit in words
_POWERS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
_COMPOSED = {"area": (("length", 2),), "volume": (("length", 3),), "speed": (("length", 1), ("time", -1))}
# Where a unit may begin: a word right after something that can end a number.
_START = re.compile(
    r"(?:(?<=[\d)}\]%])|(?<=[\d)}\]%] )|(?<=\\pi )|(?<=[a-z] )|(?<=\d)(?=/(?:[A-Za-z]{3,}"
    r"|[一-鿿])))(?:/|[A-Za-z一-鿿]|\^\\circ)"
)
_PART = re.compile(r"\s*(?<!\d)(\d++(?:\.\d++)?+)\s*([A-Za-z一-鿿]+)[,\s]*(?:and)?")


class Unit(NamedTuple):
    dimensions: tuple[tuple[str, int], ...]  # with exponents, sorted by name; none: a counter
    factor: Fraction  # to base units
    counts: bool = False  # things, which are no measure: 36个 are not 36元

    def measures(self) -> bool:
        return bool(self.dimensions) and all(name in _TABLE for name, _ in self.dimensions)


_UNITS = {word: Unit((), Fraction(1), word not in _NUMBERS) for word in (*_COUNTERS, *_NUMBERS)} | {
    word: Unit(_COMPOSED.get(dimension, ((dimension, 1),)), Fraction(factor))
    for dimension, units in _TABLE.items()
    for factor, words in units.items()
    for word in words.split()
}

# Of units of measure; a single letter is rather a variable.
UNIT_FACTORS = {
    word: unit.factor for word, unit in _UNITS.items() if unit.measures() and (len(word) > 1 or word > "z")
}


def split_unit(text: str, *, bare_letters: bool = False) -> tuple[str, Unit | None]:
    """Split a normalised answer into value and unit; `bare_letters`: the other answer is a plain number."""
    text = _RATE_OF_MONEY.sub(r"\2 \1 \3", text)  # $18/day
    if money := re.match(r"(dollar|yuan|euro|pound)\s+(?=[\d.\\-])", text):
        return text[money.end() :].strip(), _UNITS[money[1]]
    bracket = _IN_BRACKETS.search(text)
    if bracket and (unit := _read_unit(bracket[1])) and (unit.measures() or not unit.dimensions):
        return text[: bracket.start()].rstrip(), unit
    text = _TRAILING.sub("", text)
    if several := _sum_of_parts(text):
        return several
    for found in _START.finditer(text, max(0, len(text) - _LONGEST)):
        start = found.start()
        body, words = text[:start].rstrip(), text[start:].strip()
        # 5m may be five times m, so a single letter is a unit only after a space or with `bare_letters`.
        letter = len(words.rstrip("^{}23")) == 1 and words.isascii()
        may_be_unit = bare_letters or (text[start - 1] == " " and text[start] in "mgshlL")
        if not body or re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", body) or (letter and not may_be_unit):
            continue
        if unit := _read_unit(words):
            return body.removesuffix("\\cdot").rstrip(), unit
    return text, None


def _sum_of_parts(text: str) -> tuple[str, Unit] | None:
    # 2 hours 30 minutes, 3元6角: one quantity in base units.
    parts = _PART.findall(text)
    if len(parts) < 2 or _PART.sub("", text).strip():
        return None
    units: list[Unit] = []
    for _, word in parts:
        # 分 is a minute after hours and a hundredth of a yuan after 角 or 元.
        minutes = units and units[-1].dimensions == (("time", 1),)
        unit = _read_word(("分钟" if minutes else "美分") if word == "分" else word)
        if unit is None or not unit.dimensions:
            return None
        units.append(Unit(units[-1].dimensions, unit.factor) if word == "分" and units else unit)
    if len({unit.dimensions for unit in units}) > 1:
        return None
    total = sum(Fraction(number) * unit.factor for (number, _), unit in zip(parts, units, strict=True))
    return f"{total.numerator}/{total.denominator}", Unit(units[0].dimensions, Fraction(1))


def _read_unit(text: str) -> Unit | None:
    text = text.replace("^\\circ C", "^\\circC").replace("^\\circ F", "^\\circF").replace(" squared", "^2")
    dimensions, factor, counts = Counter[str](), Fraction(1), False
    parts = re.split(r"\s*(?:/|(?<![A-Za-z])(?:per|an?|each|every)(?= )|每)\s*", text)
    for index, part in enumerate(parts):
        if not (index or part.strip()) and len(parts) == 2:  # 18/day
            continue
        word, power = part.strip().removeprefix("\\cdot").strip(), 1
        if found := re.fullmatch(r"(.*?)\s*\^\s*\{?([23])\}?", word):
            word, power = found[1], int(found[2])
        for prefix, exponent in _POWERS.items():
            if re.match(prefix + r"(?:\b|(?=[一-鿿]))\.?\s*", word):
                word, power = re.sub(rf"^{prefix}\.?\s*", "", word), exponent
        if (base := _read_word(word)) is None:
            return None
        power = -power if index else power
        factor, counts = factor * base.factor**power, base.counts and len(parts) == 1
        for name, exponent in base.dimensions:
            dimensions[name] += power * exponent
    powers = tuple(sorted((name, power) for name, power in dimensions.items() if power))
    return Unit(powers, factor, counts)


def _read_word(text: str) -> Unit | None:
    plain = text.strip().rstrip(".")
    lower = plain.lower()
    for candidate in (plain, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if candidate in _UNITS:
            return _UNITS[candidate]
    if re.match(r"[多余几来左不非]|.*(?:[的之]|以[上下内外]|次方)", plain):
        return None  # no unit: 5以上, 5的倍数
    chinese = re.fullmatch(r"([一-鿿]{1,2}?)([一-鿿]{1,6})", plain)
    if chinese and chinese[1] in _UNITS and not _UNITS[chinese[1]].dimensions:
        return _UNITS.get(chinese[2]) or _UNITS[chinese[1]]  # 24个苹果: a counter and what is counted
    # Any other noun is a dimension of its own: 24 apples are not 24 pears.
    if re.fullmatch("[一-鿿]{1,6}", plain):
        return Unit(((plain, 1),), Fraction(1))
    noun = re.fullmatch(r"(?:[A-Za-z]+[\s-]+){0,3}([A-Za-z]{3,})", plain)
    if noun and not re.search(rf"\b(?:and|or|to|if|when|is|not|of|(?:{SCALE_WORDS})s?)\b", lower):
        return Unit(((noun.group(1).lower().removesuffix("s"), 1),), Fraction(1))
    return None
