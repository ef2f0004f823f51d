"""Find the final answer in a model's output, and record how it was found.

Extraction is separate from grading, so that a wrong one can be seen among the stored responses. What a
reasoning model thought first is no part of the answer; and after its answer a base model often writes a next
question of its own: the text from there is cut off.

Of several statements of an answer the last one counts: in the texts we train on, a teacher's correction and
another way to the solution follow the first attempt. But answer sentences with nothing between them are the
idling of a model that was not stopped: the first one counts. Boxes joined by a comma or a conjunction are one
answer of several values; a bare expression is taken as a whole, or not at all.

It takes time linear in the output, whatever that contains: a repetition that could give back characters in
vain is possessive (`\\s*+`), no match begins inside a run that another one has read, and slices have a limit.
"""

from typing import Literal, NamedTuple

import regex as re

from megatron_mathcpt.answers.choices import chosen_letters

Method = Literal["box", "phrase", "choice", "last_number", "none"]

# A start of thinking, or its end (group 1).
_THOUGHT = re.compile(
    r"(</(?:think|thinking|thought|reasoning|seed:think)>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷"
    r"|<\|channel\|>final<\|message\|>)|<(?:think|thinking|thought|reasoning|seed:think)>"
    r"|<\|begin_of_thought\|>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)
_END = re.compile(
    r"<\|(?:endoftext|end_of_text|eot_id|im_end|end)\|>|<end_of_turn>|</s>|<eos>", re.IGNORECASE
)
# Where a base model starts the next question. Only at the start of a line, so prose is never cut.
_NEXT_QUESTION = re.compile(
    r"\n[^\S\n]*+(?:[#*]{1,4}+\s*+)?+(?:(?:Question|Problem|Exercise|Example|问题|题目|例题|例|【题目】|【问题】)"
    r"\s*+\d*+\s*+(?:\*\*\s*+)?+[:：.、]|Q\s*+\d*+\s*+[:：])",
    re.IGNORECASE,
)
_NOTED = re.compile(r"<<[^<>\n]{1,200}>>")  # GSM8K's notes for a calculator
_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*+")
_BARE = re.compile(r"[^\s$\\,.]+")  # `\boxed 5` is read too
# All that separates the boxes of one answer: conjunctions, names of unknowns, numbers of blanks.
_JOINED = re.compile(
    r"(?:[\s$,;:，；：、。&*~{}]|\\[\\\s,;:!()\[\]]|\\q?quad\b|\\(?:text|mbox|textrm|mathrm)\b"
    r"|(?:and|or|also|as well as)\b"
    r"|或者?|和|与|以及|及|第[一二三四]空[是为填]?|[(（][\da-d①-⑨][)）]|[A-Za-z](?:_\{?\w\}?)?\s*=)*+"
    r"|[\s$,;.，；。)]*+(?:(?:and|or)\s++)?+(?:(?:if|when|case)\b|[当若])[^\n]{0,60}+",  # by cases
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\bnot|n't|rather than|instead of|不是|而非|并非|不等于"
    r"|(?:(?:can)?not|never|n't) (?:be|equal)|不[能会可]能?是)[\s$\\(*]*$"
)
# After a box, the beginning of its correction.
_CORRECTED = re.compile(
    r"\b(?:wait|no|not|actually|mis\w+|error|wrong|correct(?:ion|ed))\b|错|不对|更正|等等", re.IGNORECASE
)
_PHRASE = {
    "en": re.compile(
        r"\banswers?(?:\s++to\s++th(?:e|is)\s++(?:question|problem))?(?:\s++(?:should|must|would|will|therefore|thus"
        r"|then|now|has\s++to|turns\s++out\s++to|comes\s++out\s++to))*+\s*+(?:\*\*\s*+)?+"
        r"(?:is|are|be|equals|:|=)(?!\s++not\b)"
        r"(?:\s++(?:therefore|thus|then|simply|just|now|actually)\b)?+"
        r"(?:\s*+:)?\s*+(?:\*\*)?|####",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"答案\s*+应?该?(?:是|为|选|等于|[:：])++\s*+[:：]?|(?<![^\s。])答\s*+[:：]|[故应]填\s*+[:：]?"
        r"|(?<!不)(?<!不[能应会可])(?<!不应该)选择?+\s*+[:：]?+(?=\s*+[(（]?[A-H])"
    ),
}
# One answer sentence after another, without a word of correction.
_IDLING = re.compile(
    r"(?!.{0,200}?\b(?:no|not|wait|actually|sorry)\b|.{0,200}?[不错]|.{0,200}?等等)(?=\s*+\S)(?:[^\n.。]|\.(?=\S))*+[.。\n]++\s*+"
    r"(?:(?:so|thus|therefore|hence|the|final|correct|所以|故|最终|,)\s*+)*+",
    re.IGNORECASE | re.DOTALL,
)
# A reason after an answer, often in brackets, is no part of it.
_REASON = re.compile(
    r"(?<=[\w$%)}\]°*])\s*+(?:[(（]\s*+(?:(?:since|because|as|so|i\.e\.|that is|not|check"
    r"|from|by|which|about|"
    r"approximately)\b|因为|由于|即|约|[≈=])"
    r"|[,，]?\s*+(?:\b(?:since|because|as(?! (?:well|many|much|an?|the)\b))\b|因为|由于))"
    r"(?!.*(?:\b(?:so|then|thus|hence|therefore|we)\b|所以|故|得)).*",
    re.IGNORECASE | re.DOTALL,
)
_AFTERTHOUGHT = re.compile(r"[,，]\s*+(?:(?:so|not|which)\b|不是|而不是).*", re.IGNORECASE | re.DOTALL)
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
    re.IGNORECASE,
)
# 9 points in 40 minutes, remainder 2 when divided by 6: what follows is not what the sentence says.
_CIRCUMSTANCE = re.compile(
    r"\b(?:for|after|in|from|per|among|(?<!divisible )by|during|over|on|if|when|between|without|before|until"
    r"|since|at(?! most| least)"
    r"|(?<!\b(?:us|me|you|him|her|them|he|she|left) )with|compared to)\s+(?:[a-z'’]+\s+){0,2}\$?$"
    r"|(?<!\ba(?:n|n?\s+\w+|n?\s+\w+\s+\w+)|\b(?:total|answer|result|sum|value|average))"
    r"\s+(?:of|than)(?: (?:the|his|her|its|their|our|my|these|those))?\s+\$?$",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"\s+(?:[a-z]+\s+){0,2}(?:more|less|fewer|[a-z]+er)\s+(?:[a-z]+\s+)?than\b", re.IGNORECASE
)
# What a sentence concludes, before a clause that says no more of it.
_CONCLUDED = re.compile(
    r"\b(?:so|thus|hence|therefore|is)\b,?[^,]*$|(?:所以|因此|故|是|为|占)，?[^，]*$", re.IGNORECASE
)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|total\w*|left|leav\w+|being|remain\w*"
    r"|all|altogether|is|are|was|makes?|gives?|means|get)\b|所以|因此|故|得|一共|总共|剩|还|[=≈是为]",
    re.IGNORECASE,
)
# What is no part of the solution: its check, notes, labels of steps.
_ASIDE = re.compile(
    r"(?:^|(?<=[.!?。\n])\s{0,4}+)(?:(?:let (?:me|us) |let's |we (?:can )?|to )?(?:double[- ])?"
    r"(?:check|verif)\w*|验[算证]|检[验查]|经检验)\b"
    r"(?![^\n]*(?:\b(?:so|thus|hence|therefore)\b|所以|故))[^\n.。]*(?:[.。](?=\d)[^\n.。]*)*"
    r"|\n[\s*#_]*(?:(?:notes?|remarks?|explanation|备注|注)\s*[:：]|【点评】)(?s:.*)"
    r"|\b(?:step|case|part|method)\s+\d+\s*[:：]?",
    re.IGNORECASE,
)
_OPEN = re.compile(
    r"\bdepends on\b|(?:not|n't have) enough|条件不足"
    r"|(?:cannot|can't|can not|unable to|impossible to) (?:be )?(?:determine|find|say|answer)|无法|不能确定",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[,;]\s++|[，；、]|\s(?:and|or)\s|或者?|和|与")
# What an equation between numbers has on its left, apart from signs.
_ARITHMETIC = re.compile(
    r"\\(?:times|cdot|div|[dt]?frac|left|right|sqrt|binom|choose|pi|text\s*\{[^{}]*\}|[^A-Za-z])|times|plus|minus|over|sqrt|(?<=[\d%)\s])x(?=\s*[\d$.])"
)
_LONGEST = 4000  # characters of a sentence with the answer, twice what can be graded
_MOST = 200  # answer sentences that are looked at


class Extraction(NamedTuple):
    text: str  # as written; empty if `method` is `none`
    method: Method


def split_thinking(output: str) -> tuple[str, str]:
    """Split an output after the last end of thinking; where thinking does not end, there is no answer."""
    end = 0
    for mark in _THOUGHT.finditer(output):
        end = mark.end() if mark[1] else len(output)
    return output[:end], output[end:]


def extract_answer(output: str, language: str = "en", kind: str = "auto") -> Extraction:
    """Return the last box, final-answer phrase (of `language` first), choice letters, or bare expression.

    Choice letters are searched for, and numbers cut out of phrases, only if the gold answer is of that kind.
    """
    _, answer = split_thinking(_END.split(output, maxsplit=1)[0])
    text = _NOTED.sub("", _NEXT_QUESTION.split(answer, maxsplit=1)[0]).rstrip()
    box, end = _last_boxes(text, kind)
    if box:
        # A box is outweighed by a sentence of our own format on a line of its own, and by the answer after
        # a word of correction.
        final = re.search(r"\n(?:The answer is|答案是)\s*([^\n]*[\d\\][^\n]*|[A-H]+\W*)$", text[end:])
        if final:
            return Extraction(_sentence(final[1]), "phrase")
        later = _phrases(text[end:], language) if _CORRECTED.search(text, end) else []
        if not later or not re.match(r"\W*[A-H]\b|.*[\d\\]", later[0]):
            return Extraction(box, "box")
        text = text[end:]
    phrases = _phrases(text, language)
    if kind in ("choice", "multichoice"):
        return _choice(text, phrases, kind)
    if kind == "number":  # "The answer is correct" has none
        phrases = [phrase for phrase in phrases if re.search(r"\d", phrase)] or phrases
    if phrases:
        return Extraction(_number_in(phrases[0]) if kind == "number" else phrases[0], "phrase")
    unclosed = re.fullmatch(r"\\boxed\{(?!\})[^\n]*", text[max(0, text.rfind("\\boxed{")) :])
    number = "" if unclosed else _last_expression(text)
    return Extraction(number, "last_number" if number else "none")


def _last_boxes(text: str, kind: str) -> tuple[str, int]:
    """Contents of the last box that is closed and not empty, with those joined to it, and where they end."""
    starts = list(_BOX.finditer(text))
    if not starts:
        return "", 0
    opened: list[int] = []
    ends: dict[int, int] = {}  # place of each closed brace: of its end
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # \{ and \} are no braces
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            ends[opened.pop()] = brace.start()
    found: list[str] = []
    joints, last, begin = "", 0, 0
    for start in reversed(starts):
        braced, bare = text.startswith("{", start.end()), _BARE.match(text, start.end())
        end = ends.get(start.end(), start.end()) if braced else bare.end() if bare else start.end()
        content = text[start.end() + braced : end].strip()
        if not content or _DENIED.search(text[max(0, start.start() - 30) : start.start()]):
            continue
        if found and not (end <= begin <= end + 100 and _JOINED.fullmatch(text, end + braced, begin)):
            break
        joints += text[end:begin] if found else ""
        found, last, begin = [content, *found], last or end + braced, start.start()
    if kind == "cloze":
        return ";".join(found), last
    return (" or " if re.search(r"\bor\b|或", joints) else ", ").join(dict.fromkeys(found)), last


def _phrases(text: str, language: str) -> list[str]:
    """Final-answer phrases that are not empty, the one that counts first."""
    phrases: list[str] = []
    for pattern in (_PHRASE[language], _PHRASE["zh" if language == "en" else "en"]):
        matches = list(pattern.finditer(text))[-_MOST:]
        found = [(each, _sentence(text[each.end() : each.end() + _LONGEST])) for each in matches]
        found = [(each, sentence) for each, sentence in found if sentence and not _is_loop(sentence)]
        chosen = len(found) - 1
        while chosen > 0 and _IDLING.fullmatch(text, found[chosen - 1][0].end(), found[chosen][0].start()):
            chosen -= 1
        phrases += [sentence for _, sentence in reversed(found[: chosen + 1])]
    return phrases


def _sentence(text: str) -> str:
    # A line break right after "The answer is:" does not end the sentence.
    text = text.lstrip(" \t*:：") if text[:1] != "\n" else text.lstrip("\n ")
    if display := re.match(r"\s*(\$\$.+?\$\$|\\\[.+?\\\])", text, re.DOTALL):
        return display[1]
    # A stop inside $...$ or between digits is part of the answer.
    end = re.search(r"\n|。|；\s*$|\.(?=\s+[A-Z一-鿿]|\s*$)|\.\s*(?=\n)|</", text)
    text = (text[: end.start()] if end else text).strip().strip('*"“”')
    return _AFTERTHOUGHT.sub("", _REASON.sub("", text, count=1), count=1).rstrip(".,，。;；!！").strip()


def _choice(text: str, phrases: list[str], kind: str) -> Extraction:
    several = kind == "multichoice"
    for phrase in phrases:
        if letters := chosen_letters(phrase, several=several, answers=True):
            return Extraction(letters, "phrase")
    if letters := chosen_letters(text, several=several):
        return Extraction(letters, "choice")
    # The text of an option, perhaps.
    bare = [phrase for phrase in phrases if not re.search(r"(?<![A-Za-z\\])[A-H](?![A-Za-z])", phrase)]
    return Extraction(bare[0], "phrase") if bare else Extraction("", "none")


def _number_in(phrase: str) -> str:
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
        more = re.match(
            r"[^\d,;，；。]*(?:[,;，；]|\b(?:and|or|plus)\b|[和或与])[^\d]*\d", phrase[first.end() :]
        )
        return phrase if more else value
    return _last_expression(phrase) or phrase


def _is_loop(text: str) -> bool:
    """Whether it ends in a loop of the same words with a number, which a degenerate model does not leave."""
    units = (text[-size:] for size in range(2, 80))
    return any(
        text.endswith(unit * 4) and re.search(r"\d", unit) and re.search(r"[\s,，、]", unit) for unit in units
    )


def _last_expression(text: str) -> str:
    """The last expression that may be a value; none of a loop."""
    tail = text[-_LONGEST:]
    if _is_loop(tail):
        return ""
    tail = _ASIDE.sub("", tail).rstrip()
    last = max((stop.end() for stop in re.finditer(r"[.!?]\s|[。\n]", tail[:-1])), default=0)
    tail = tail[:last] + _REASON.sub("", tail[last:], count=1)
    if _OPEN.search(tail, last):
        return ""
    values = [(found, value) for found in _EXPRESSION.finditer(tail) if (value := _value(found))]
    if not values:
        return ""
    # A digit further on, but for one of a unit or an ordinal, belongs to what cannot be read.
    rest = re.sub(r"[A-Za-z]\^?\{?\d|\d+(?:st|nd|rd|th)\b", "", tail[values[-1][0].end() :])
    if (len(text) > _LONGEST and not values[-1][0].start()) or re.search(r"\d", rest):
        return ""
    while (
        len(values) > 1
        and values[-2][0].start() >= last
        and _is_aside(tail, last, values[-2][0], values[-1][0])
    ):
        values.pop()
    found, value = values[-1]
    return "" if _DENIED.search(tail[max(last, found.start() - 30) : found.start()]) else value


def _is_aside(text: str, last: int, before: re.Match[str], found: re.Match[str]) -> bool:
    """Whether an expression is no more than a circumstance of the one before it."""
    if "=" in found[0]:
        return False
    start = found.end() - len(re.sub(rf"^[\s,，]*(?:{_JOINT})?\s*", "", found[0], flags=re.IGNORECASE))
    between = text[before.end() : start]
    if re.search(r"[,，]\s*(?:which (?:is|was) |or )?$", between) and _COMPARED.match(text, found.end()):
        return True
    if _CIRCUMSTANCE.search(text[max(last, start - 60) : start]) or _DENIED.search(between[-30:]):
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
    text = re.sub(rf"^(?:,\s*)?(?:{_JOINT})\s*", "", text, flags=re.IGNORECASE)
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
        text = text.lstrip(" \t\n=:*/,;|)}]&").rstrip(" \t\n-+*/=<>:,;|^_&([{.\\")
        text = text.removeprefix("\\)").removeprefix("\\]")
        surplus = sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
        text = (
            text[1:]
            if surplus > 0 and text[0] in "([{"
            else text[:-1]
            if surplus < 0 and text[-1:] in (*")]}",)
            else text
        )
        text = text[:-1] if text.count("$") % 2 and text.endswith("$") else text
    return text
