"""The number or expression in a sentence that has neither a box nor an answer phrase.

It is taken as a whole, or not at all, and from what the last sentence concludes: not from its circumstances
(9 points in 40 minutes), comparisons (5 more than before), reasons, checks or notes.
"""

import regex as re

DENIED = re.compile(
    r"(?:\bnot|n't|rather than|instead of|不是|而非|并非|不等于"
    r"|(?:(?:can)?not|never|n't) (?:be|equal)|不[能会可]能?是)[\s$\\(*]*$"
)
# A reason after an answer, often in brackets, is no part of it.
REASON = re.compile(
    r"(?<=[\w$%)}\]°*])\s*+(?:[(（]\s*+(?:(?:since|because|as|so|i\.e\.|that is|not|check"
    r"|from|by|which|about|approximately)\b|因为|由于|即|约|[≈=])"
    r"|[,，]?\s*+(?:\b(?:since|because|as(?! (?:well|many|much|an?|the)\b))\b|因为|由于))"
    r"(?!.*(?:\b(?:so|then|thus|hence|therefore|we)\b|所以|故|得)).*",
    re.I | re.DOTALL,
)
_SPAN = (
    r"\$\$[^$]{1,400}\$\$|\\\([^\n]{1,400}?\\\)|\\\[.{1,600}?\\\]|\$(?=\S)[^$]{1,300}(?<=\S)\$(?!\d)"
    r"|\$(?:[^$\nA-Za-z\\]|\\[A-Za-z]++(?:\{[^{}$]*+\})?|\\.|[A-Za-z]{1,2}+(?![A-Za-z])){1,400}+\$(?!\d)"
)
_OPERAND = r"[\s$]*+(?:[\d\\({\[√π]|[-−+±](?=[\d\\(√π])|[A-Za-z](?:_\w)?\s*+[=<>≤≥])"
_JOINT = "and|or|to|over|out of|times|plus|minus|choose|和|或者?|与|比"
# A mathematical expression, or several that are joined, in or out of dollar signs.
_EXPRESSION = re.compile(
    r"(?<![A-Za-z0-9_^/*+\-−.\\])(?:(?P<minus>minus|negative|负|零下)\s*+"
    r"|(?:plus or minus|(?:square |cube )?root of|根号)\s*+)?+"
    rf"(?P<value>(?:{_SPAN}|\\(?:text|mathrm|mbox|textbf|operatorname|begin|end)\s*+\{{[^{{}}]*+\}}|\\[A-Za-z]++|\\."
    r"|(?:\d++(?:,\d{3}(?!\d))*+(?:\.\d++)?+|(?<!\d)\.\d++)(?:(?!(?:st|nd|rd|th)\b)[A-Za-z]{1,3}+(?![A-Za-z]))?+"
    r"(?:[万亿]|[千百](?![米克瓦]))*+"
    r"|(?<![A-Za-z])(?:sqrt|sin|cos|tan|log|ln|pi|[A-Za-z]'*+|[A-Z]{2,3}(?=\s?[\^_=<>≤≥]))(?![A-Za-z'’])"
    r"|[-+−–*/×÷·^_=<>≤≥≠≈±√π∞°%!|(){}\[\]∈∪∩¥￥€£…&]|\.{3}|:(?!\s)|(?<=\s):|\$(?=[\d.-])"
    r"|[一二三四五六七八九十百千万]++分之[一二三四五六七八九十百千万]++"
    r"|[ \t]++(?=[-+−*/×÷·^=<>≤≥≠≈±√π∞\\(\[{}\])|:\d∈∪∩&$]|[A-Za-z](?![A-Za-z'’]))"
    rf"|\s*+[,;，；、](?={_OPERAND})"
    rf"|\s*+(?:[,，]\s*+)?(?:{_JOINT})(?={_OPERAND}))++)"
    r"(?:\s*+(?:million|billion|thousand|hundred|percent|per cent|squared|cubed|factorial)\b)*+",
    re.I,
)
# 9 points in 40 minutes, remainder 2 when divided by 6: what follows is not what the sentence says.
_CIRCUMSTANCE = re.compile(
    r"\b(?:for|after|in|from|per|among|(?<!divisible )by|during|over|on|if|when|between|without|before|until"
    r"|modulo|since|at(?! most| least)"
    r"|(?<!\b(?:us|me|you|him|her|them|he|she|left) )with|compared to)\s+(?:[a-z'’]+\s+){0,2}\$?$"
    r"|[,，]比[^,，。\d]{1,10}$"
    r"|\b(?:that|who)\s+(?:costs?|weighs?|contains?)\s+\$?$"
    r"|(?<!\ba(?:n|n?\s+\w+|n?\s+\w+\s+\w+)|\b(?:total|answer|result|sum|value|average))"
    r"\s++(?:of|than)(?: (?:the|his|her|its|their|our|my|these|those))?\s+\$?$",
    re.I,
)
_COMPARED = re.compile(r"\s+(?:[a-z]+\s+){0,2}(?:more|less|fewer|[a-z]+er)\s+(?:[a-z]+\s+)?than\b", re.I)
# What a sentence concludes, before a clause that says no more of it.
_CONCLUDED = re.compile(
    r"\b(?:so|thus|hence|therefore|is)\b,?[^,]*$|(?:所以|因此|故|是|为|占)，?[^，]*$", re.I
)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|total\w*|left|leav\w+|being|remain\w*"
    r"|all|altogether|is|are|was|makes?|gives?|means|get)\b|所以|因此|故|得|一共|总共|剩|还|[=≈是为]",
    re.I,
)
# What is no part of the solution: its check, notes, labels of steps.
_ASIDE = re.compile(
    r"(?:^|(?<=[.!?。\n])\s{0,4}+)(?:(?:let (?:me|us) |let's |we (?:can )?|to )?(?:double[- ])?"
    r"(?:check|verif)\w*|验[算证]|检[验查]|经检验)\b"
    r"(?![^\n]*(?:\b(?:so|thus|hence|therefore)\b|所以|故|[是为][^。\n]{0,9}[解根]))[^\n.。]*(?:[.。](?=\d)[^\n.。]*)*"
    r"|\n[\s*#_]*+(?:(?:notes?|remarks?|explanation|备注|注)\s*[:：]|【点评】)(?s:.*)"
    r"|\b(?:step|case|part|method)\s+\d+\s*[:：]?",
    re.I,
)
_IN_WORDS = re.compile(
    r"(?<=[\w%$])\s++[(（][^()（）]*(?:[A-Za-z一-鿿]{2}|\d\s?[*×/+=]\s?\d)[^()（）]*[)）]\s*+[.。]?$"
)
_OPEN = re.compile(
    r"\b(?:depends on|unclear|unknown)\b|(?:not|n't have) enough|条件不足"
    r"|(?:cannot|can't|can not|unable to|impossible to) (?:be )?(?:determine|find|say|answer)|无法|不能确定",
    re.I,
)
_SEPARATOR = re.compile(r"[,;]\s++|[，；、]|\s(?:and|or)\s|或者?|和|与")
# What an equation between numbers has on its left, apart from signs.
_ARITHMETIC = re.compile(
    r"\\(?:times|cdot|div|[dt]?frac|left|right|sqrt|binom|choose|pi|text\s*\{[^{}]*\}|[^A-Za-z])|times|plus|minus|over|sqrt|(?<=[\d%)\s])x(?=\s*[\d$.])"
)
LONGEST = 4000  # characters of a sentence with the answer, twice what can be graded


def number_in(phrase: str) -> str:
    if _OPEN.search(phrase):
        return ""
    phrase = re.sub(r"(?<=[\w%])\s++[(（][^()（）]*[)）]$", "", phrase)
    # "The answer is the sum of the digits of 7" says what is sought.
    if re.match(
        r"(?:the|found|given)\b(?! (?:number |integer )?\W*\d)(?!.*(?:[=:]|\b(?:is|are|was|equals?)\b))",
        phrase,
    ):
        return ""
    # A short phrase may be a number with its unit, which the grader can read.
    bare = phrase.replace("$", "").strip()
    if len(bare.split()) <= 3 and not re.search(r"[一-鿿]{3,}", bare):
        return phrase
    first = _EXPRESSION.match(phrase)  # 72 clips in 2 months; but not 5 apples and 3 pears
    if first and (value := _value(first)):
        more = r"[^\d,;，；。]*(?:[,;，；]|\b(?:and|or|plus)\b|[和或与])[^\d]*\d"
        return phrase if re.match(more, phrase[first.end() :]) else value
    return last_expression(phrase) or phrase


def is_loop(text: str) -> bool:
    """Whether it ends in a loop of the same words with a number, which a degenerate model does not leave."""
    units = (text[-size:] for size in range(2, min(80, 1 + len(text) // 4)))
    looped = (unit for unit in units if text.endswith(unit * 4))
    return any(re.search(r"\d", unit) and re.search(r"[\s,，、]", unit) for unit in looped)


def last_expression(text: str) -> str:
    """The last expression that may be a value; none of a loop."""
    tail = text[-LONGEST:]
    if is_loop(tail):
        return ""
    tail = _IN_WORDS.sub("", _ASIDE.sub("", tail).rstrip())
    last = max((stop.end() for stop in re.finditer(r"[.!?]\s|[。\n]", tail[:-1])), default=0)
    tail = tail[:last] + REASON.sub("", tail[last:], count=1)
    if _OPEN.search(tail, last):
        return ""
    values = [(found, value) for found in _EXPRESSION.finditer(tail) if (value := _value(found))]
    if not values:
        return ""
    # A digit further on, but for one of a unit or an ordinal, belongs to what cannot be read.
    rest = re.sub(r"[A-Za-z]\^?\{?\d|\d+(?:st|nd|rd|th)\b", "", tail[values[-1][0].end() :])
    if (len(text) > LONGEST and not values[-1][0].start()) or re.search(r"\d", rest):
        return ""
    # 35 flowers: 10 yellow, 18 purple and 7 green
    colon = re.search(r"(?<=\d) [a-z ]{1,30}:(?= \$?\d[^=]*$)", tail[last:])
    listed = [each for each in values if colon and each[0].start() >= last + colon.end()]
    if 1 < len(listed) < len(values):
        values = values[: -len(listed)]
    while len(values) > 1 and _is_aside(tail, last, values[-2][0], values[-1][0]):
        values.pop()
    found, value = values[-1]
    return "" if DENIED.search(tail[max(last, found.start() - 30) : found.start()]) else value


def _is_aside(text: str, last: int, before: re.Match[str], found: re.Match[str]) -> bool:
    """Whether an expression is no more than a circumstance of the one before it in the last sentence."""
    if "=" in found[0] or before.start() < last:
        return False
    start = found.end() - len(re.sub(rf"^[\s,，]*(?:{_JOINT})?\s*", "", found[0], flags=re.I))
    between = text[before.end() : start]
    if re.search(r"[,，]\s*(?:which (?:is|was) |or )?$", between) and _COMPARED.match(text, found.end()):
        return True
    if _CIRCUMSTANCE.search(text[max(last, start - 60) : start]) or DENIED.search(between[-30:]):
        return True
    return bool(
        re.search(r"[,，]", between)
        and not _CONCLUDES.search(between)
        and _CONCLUDED.search(text[max(last, before.start() - 100) : before.start()])
    )


def _value(found: re.Match[str]) -> str:
    """What an expression says: all of it, or the last side of an equation between numbers; '' for a name."""
    text, line = found[0].strip(), found.string[: found.start()].rpartition("\n")[2]
    if found["minus"]:
        text = "-" + text[len(found["minus"]) :].strip()
    if not line.strip():
        text = re.sub(r"^[-*–]\s+", "", text)  # a bullet
    text = re.sub(rf"^(?:,\s*)?(?:{_JOINT})\s*", "", text, flags=re.I)
    text = _bare(re.sub(r"^–\s+|^[A-Za-z]\s+(?=[\d$\\(])|\s+[aAI]$", "", text))
    last = _SEPARATOR.split(text)[-1]
    *_, left, right = ["", "", *re.split(r"=|≈|\\approx", last)]  # of a chain, the side before the last one
    chain = last.count("=") > 1 and not re.search(r"[A-Za-z\\<>≤≥]", _ARITHMETIC.sub("", right))
    if chain or (last != right and not re.search(r"[A-Za-z\\<>≤≥]", _ARITHMETIC.sub("", left))):
        text = _bare(right)
    return text if re.search(r"\d|\\(?:frac|sqrt|pi|infty|emptyset|mathbb)|[π∞√=<>]|分之", text) else ""


def _bare(text: str) -> str:
    # Signs at the ends that belong to the words around an expression.
    for _ in range(8):
        text = text.lstrip(" \t\n=:*/,;|)}]&，、；：").rstrip(" \t\n-+*/=<>:,;|^_&([{.\\")
        text = text.removeprefix("\\)").removeprefix("\\]")
        surplus = sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
        if surplus > 0 and text[0] in "([{":
            text = text[1:]
        elif surplus < 0 and text[-1:] in (*")]}",):
            text = text[:-1]
        text = text[:-1] if text.count("$") % 2 and text.endswith("$") else text
    return text
