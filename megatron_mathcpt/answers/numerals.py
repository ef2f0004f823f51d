"""Numbers in words, written in digits: Chinese numerals, English number words and scales, repeating decimals.

What is no number of a known form stays as it is: 两三个 is about two or three, not 23.
"""

from fractions import Fraction

import regex as re

_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2}
_POWERS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_FORMAL = str.maketrans(
    "〇○壹贰貳叁肆伍陆陸柒捌玖拾佰仟萬億兩圆圓塊點個時間",
    "零零一二二三四五六六七八九十百千万亿两元元块点个时间",
)
_DIGIT = "[零一二三四五六七八九]"
_SIGN = "[零一二两三四五六七八九十百千万亿]"
_NUMERAL = rf"(?<!{_SIGN}){_SIGN}++"
_ARABIC = r"(?<![\d.])\d++(?:,\d{3})*+(?:\.\d++)?+"
_PLAIN = rf"(?:{_NUMERAL}|{_ARABIC})"
_LONGEST = 40  # characters: ten times 万 is 10^40
# 5千, 13万2: not 5千克, 5千米, 5百分; 3万千米 is 3万 of them.
_KILO = "千(?=[克米瓦卡伏帕焦赫])"
_MIXED = re.compile(
    rf"({_ARABIC})\s*+(?!{_KILO}|百分)([十百千万亿](?:(?<=[\d零一二两三四五六七八九]){_KILO}"
    rf"|(?!{_KILO})(?:{_SIGN}|\d))*+)(?![.\d]|分[之])"
)
# What is counted may follow these; a numeral before the others is one only if no word follows (三角形).
_IN_PLACE = re.compile(
    rf"(?:(?<![一-鿿\d])|(?<=[负第共约有是为得午上下晨晚比时点分年月元角块又和与或]))({_NUMERAL})(?=$"
    rf"|[^一-鿿]|[个只本人岁天名件条张辆棵种倍空比℃]|进制|小时|分钟|千[克米]"
    rf"|(?:[元次角毛度时点月日号周年成折斤米升吨分块]|厘米|分米|毫米|公[里斤]|平方|立方|摄氏|秒)"
    rf"(?![一-鿿])|(?:元|角|块|时|分|点|年|月|度|平方|立方|摄氏)(?={_SIGN}|[整半左米千分厘公]|度|一刻|三刻))"
)


def arabic_numerals(text: str) -> str:
    """Write Chinese numerals in digits, but not those that are part of a word."""
    if text.isascii():
        return text
    text = text.translate(_FORMAL).replace("廿", "二十").replace("卅", "三十").replace("俩", "两个")
    # Most answers have none, and each pattern below scans the text.
    if not re.search("[零一二两三四五六七八九十百千万亿每又根半折成对负]", text):
        return text
    text = re.sub(f"(?<!{_SIGN})[一二两三四五六七八九](?={_KILO})", lambda m: str(_DIGITS[m[0]]), text)
    decimals = rf"({_NUMERAL})点(?!零{_DIGIT}分)({_DIGIT}++)(?!刻)"
    text = re.sub(decimals, lambda m: f"{_read(m[1])}.{_each_digit(m[2])}", text)
    text = re.sub(rf"百分之({_PLAIN})", lambda m: f"{_read(m[1])}%", text)
    text = re.sub(rf"(?:({_PLAIN})又)?({_PLAIN})分之(根号)?({_PLAIN})", _fraction, text)
    text = re.sub(r"(?<=\d)又(?=\d+/\d|\\frac)", " ", text)  # of a mixed number
    text = re.sub(rf"根号({_PLAIN})", lambda m: f"\\sqrt{{{_read(m[1])}}}", text)
    text = _MIXED.sub(lambda m: _read(m[1] + m[2]), text)
    # A tenth of the price or of the whole: 八折, 八五折, 8.5折, 三成五 are per cent.
    tenths = rf"^打?({_PLAIN})(折|成)({_DIGIT}|\d)?(?:出售|优惠)?$"
    text = re.sub(tenths, _tenths, re.sub("^(?:打?对折|半价)$", "五折", text))
    text = re.sub("^每(小时|分钟|秒|天|年|月|周|时)(.+)$", r"\2/\1", text)
    text = _IN_PLACE.sub(lambda m: _read(m[1]), text)
    text = re.sub(r"负(?=[\d\\])", "-", text)
    # A half more: 两个半, 一个半小时, 2年半; a half alone: 半小时.
    text = re.sub(r"^(\d+)(?:个半|([倍年天斤]|小时)半)(个?(?:小时|月|钟头)|)$", r"\1\\frac{1}{2}\2\3", text)
    return re.sub(r"^[一1]?半个?(?=$|(?:小时|分钟|年|天|斤|米|千克|公斤)$)", r"\\frac{1}{2}", text)


def _each_digit(text: str) -> str:
    return "".join(str(_DIGITS[digit]) for digit in text)


def _fraction(match: re.Match[str]) -> str:
    whole, bottom, root, top = match.groups()  # Chinese names the denominator first
    above = f"\\sqrt{{{_read(top)}}}" if root else _read(top)
    below = _read("一" + bottom if bottom in "百千万" else bottom)
    return f"{_read(whole) if whole else ''}\\frac{{{above}}}{{{below}}}"


def _tenths(match: re.Match[str]) -> str:
    value, more = _read(match[1]), _read(match[3] or "零")
    if not re.fullmatch(r"\d(?:\.\d)?|[1-9]\d(?=$)", value) or (len(value) == 2 and match[2] == "成"):
        return match[0]
    return written(Fraction(value) * (1 if len(value) == 2 else 10) + int(more)) + "%"


def written(value: Fraction) -> str:
    """A number in digits, or as a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _read(text: str) -> str:
    value = _value(text) if len(text) <= _LONGEST else None
    return text if value is None else value if isinstance(value, str) else written(value)


def _value(text: str) -> str | Fraction | None:  # noqa: C901, PLR0911, PLR0912 - one rule a branch
    if re.fullmatch(r"[\d,.]+", text):
        return text
    if len(text) > 1 and all(sign in _DIGITS for sign in text):  # 一二三, as 123; but 二三 is two or three
        digits = _each_digit(text)
        about = len(text) == 2 and int(digits[1]) - int(digits[0]) in (1, 2) and digits[0] != "0"
        return None if about or "两" in text else digits
    # A section is what precedes 万 or 亿.
    total, section, number, digit = Fraction(0), Fraction(0), Fraction(0), ""
    place, large, zero = 10**13, 10**13, False
    for part in re.findall(r"[\d,.]+|.", text):
        if part == "零":
            zero = True
        elif part not in _POWERS:
            if digit:  # 两三, 十七八
                return None
            digit, number = part, Fraction(_DIGITS.get(part) or part.replace(",", ""))
        else:
            power = _POWERS[part]
            if power < 10**4:
                if power >= place or not (digit or power == 10 or (part == text[0] and len(text) > 1)):
                    return None
                section, place = section + (number if digit else 1) * power, power
            elif power < large or not (section or digit):
                if not (section or digit or total):
                    return None
                total = total + (section + number) * power if section or digit else total * power
                section, place, large = Fraction(0), power, power
            else:
                total, section, place, large = (total + section + number) * power, Fraction(0), power, power
            digit, number, zero = "", Fraction(0), False
    if digit and place < 10**13 and place > 10 and not zero:
        # A last digit without its place counts in the next lower one; 13万2500 has all of them.
        if len(digit) > 1 and len(digit) != len(str(place)) - 1:
            return None
        number *= place // 10 if len(digit) == 1 else 1
    return total + section + number


_SMALL = (  # noqa: SIM905
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NAMES = {name: value for value, name in enumerate(_SMALL)}
_NAMES |= {name: 10 * value for value, name in enumerate(_TENS, start=2)} | {"a": 1, "an": 1}
_SCALES = {"dozen": 12, "score": 20, "hundred": 100, "thousand": 1000}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10} | {f"{name}th": n for name, n in _SCALES.items() if n > 99}
SCALE_WORDS = "|".join([*_SCALES, *(f"{name}th" for name in _SCALES), "tenth"])
_FIGURES = r"(?:\d+\s*)?\\frac\{\d+\}\{\d+\}|(?:\d+\s+)?\d+/\d+|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_ONE = rf"(?:(?:{'|'.join([*sorted(_NAMES, key=len, reverse=True), *_SCALES])})s?(?![a-z])|{_FIGURES})"
_PART = rf"(?:{'|'.join(_PARTS)})s?(?![a-z])"
_SCALE = rf"(?:{'|'.join(_SCALES)})s?(?![a-z])"
# Half a million, two and a half dozen, three quarters, minus one hundred and five.
_NUMBER = re.compile(
    rf"(?P<sign>(?:minus|negative|-)\s*)?(?P<money>(?:dollar|euro|pound|yuan)\s+)?"
    rf"(?:(?:(?P<top>{_ONE})[\s-]+)?(?P<first>{_PART})(?:\s+of)?(?:\s+an?)?\s+(?={_SCALE}))?"
    rf"(?P<number>{_ONE}(?:(?:\s*-\s*|,?\s+(?:and\s+(?!an?\b))?){_ONE}(?!\s+{_PART}|-{_PART}))*)?"
    rf"(?:\s+and\s+(?P<more>{_ONE})[\s-]+(?P<added>{_PART}))?(?:[\s-]*(?P<last>{_PART}))?"
    rf"(?P<scales>(?:\s+{_SCALE})*)"
)
_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join([*list(_NAMES)[:-2], *_SCALES, *_PARTS])})s?(?![a-z])")
# After a number: nothing, a sign, or what is counted.
_AFTER = re.compile(
    r"\s*(?:$|[%,;)/^{\\].*|(?:an?\s+)?(?:(?:square|cubic)\s+)?[a-z]+(?:\s*\^.*|\s+(?:per|an?|each"
    r"|in)\s.*)?$)"
)


def number_words(text: str) -> str:
    """Write English number and scale words in digits: one hundred twenty, 1.5 million, half a dozen eggs."""
    lower = text.lower()
    if not _WORD.search(lower):
        return text
    found = _NUMBER.match(lower)
    if found and found.end() and _AFTER.match(lower, found.end()) and _WORD.search(found[0]):
        value = _in_words(found)
        if value is not None:
            sign, money = "-" if found["sign"] else "", found["money"] or ""
            return f"{money}{sign}{written(value)}{re.sub(r'^ an? ', ' ', text[found.end() :])}"
    pieces = re.split(r"([;=:<>]|,(?!\d)|(?<![a-z])(?:and|or)(?![a-z])|\\(?:approx|le|ge)(?![a-z]))", text)
    if len(pieces) == 1:
        return text
    return "".join(
        f"{piece[: len(piece) - len(piece.lstrip())]}{number_words(piece.strip())} "
        if piece.strip()
        else piece
        for piece in pieces
    ).strip()


def _in_words(found: re.Match[str]) -> Fraction | None:
    names = ("first", "added", "last")
    part = {name: _PARTS[word.removesuffix("s")] for name in names if (word := found[name])}
    value = _sequence(found["number"]) if found["number"] else None
    if found["number"] and value is None and not found["first"]:
        return None
    if first := part.get("first"):  # half a million: only scales follow
        top = _sequence(found["top"]) if found["top"] else Fraction(1)
        value = top and _scaled(top / first, found["number"] or "")
    if value is None or (found["number"] in ("a", "an") and not (found["last"] or found["scales"])):
        return Fraction(1, part["last"]) if value is None and found["last"] in ("half", "quarter") else None
    if more := found["more"]:
        added = _sequence(more)
        value = value + added / part["added"] if added is not None else None
    elif last := part.get("last"):
        # Twenty-third is an ordinal, twenty thirds are a number.
        if value != 1 and not (found["last"].endswith("s") or last in (2, 4)):
            return None
        value /= last
    return value and _scaled(value, found["scales"])


def _scaled(value: Fraction, scales: str) -> Fraction | None:
    for word in scales.replace("-", " ").split():
        if (scale := _SCALES.get(word.removesuffix("s"))) is None:
            return None
        value *= scale
    return value


def _sequence(text: str) -> Fraction | None:  # noqa: C901 - one rule a branch
    total, current, last = Fraction(0), None, 10**15
    for word in re.findall(rf"{_FIGURES}|[a-z]+", text):
        scale = _SCALES.get(word) or _SCALES.get(word.removesuffix("s"))
        if word == "and":
            continue
        if word[0].isdigit() or word[0] == "\\" or word in _NAMES:
            number = Fraction(_NAMES[word]) if word in _NAMES else _figures(word)
            tens = current is not None and current % 100 >= 20 and current % 10 == 0 and 0 < number < 10
            if current is None:
                current = number
            elif word in _NAMES and (tens or (current >= 100 and current % 100 == 0 and 0 < number < 100)):
                current += number
            else:
                return None
        elif scale is None:
            return None
        elif current is None:  # a thousand million
            if not total:
                return None
            total, last = total * scale, 0
        elif scale <= 100:
            current *= scale
        elif scale >= last:
            return None
        else:
            total, current, last = total + current * scale, None, scale
    return total + (current or 0)


def _figures(text: str) -> Fraction:
    parts = re.findall(r"[\d,]+(?:\.\d+)?", text)
    numbers = [Fraction(part.replace(",", "")) for part in parts]
    fraction = numbers[-2] / (numbers[-1] or 1) if len(numbers) > 1 else numbers[0]
    return numbers[0] + fraction if len(numbers) == 3 else fraction


def repeating_decimals(text: str) -> str:
    """Write decimals with a period as fractions: 0.1\\overline{6}, 0.\\dot1\\dot8, 0.(3), 0.333\\dots."""
    if not re.search(r"\.\d*\s*(?:\\(?:overline|dot|bar)|\(\d)|\d\s*(?:\\dots|\(?re[pc]|\(?的?循环)", text):
        return text
    text = re.sub(r"\\(overline|dot|bar)\s*(\d)", r"\\\1{\2}", text)
    text = re.sub(r"(?<=\d)\}\\overline\{(?=\d)", "", text)  # one line over each digit
    marked = r"\\dot\s*\{(\d)\}(\d{0,20})\\dot\s*\{(\d)\}|\\(?:overline|dot|bar)\s*\{(\d{1,20})\}"
    marked += r"|\((\d{1,20})\)(?![\w^(])"
    text = re.sub(rf"(?<![\d.])(\d{{1,20}})\.(\d{{0,20}})(?:{marked})(?!\d)(?:\s*\\dots)?", _period, text)
    once = r"(\d{1,20})\.(\d)\s*\(?的?(?:repeating|recurring|循环(?:小数)?)\)?"
    text = re.sub(once, r"\1.\2\2\2\\dots", text)
    return re.sub(r"(?<![\d.])(\d{1,20})\.(\d{2,40})\s*\\dots(?!\s*[\d+])", _goes_on, text)


def _period(match: re.Match[str]) -> str:
    period = match[3] + match[4] + match[5] if match[3] else match[6] or match[7]
    return _periodic(match[1], match[2], period)


def _goes_on(match: re.Match[str]) -> str:
    # 0.1666\dots: the digits at the end must have been written twice, or they are not known to continue.
    found = re.fullmatch(r"(\d*)(\d+)\2", match[2])
    return _periodic(match[1], found[1], found[2]) if found else match[0]


def _periodic(whole: str, fixed: str, period: str) -> str:
    # 0.1\\overline{6} is (16 - 1) / 90.
    bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
    return f"\\frac{{{int(whole + fixed + period) - int(whole + fixed)}}}{{{bottom}}}"
