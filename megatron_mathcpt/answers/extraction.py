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

from megatron_mathcpt.answers import bare_expression
from megatron_mathcpt.answers.bare_expression import DENIED, LONGEST, REASON
from megatron_mathcpt.answers.choices import chosen_letters

Method = Literal["box", "phrase", "choice", "last_number", "none"]

# A start of thinking, or its end (group 1).
_THOUGHT = re.compile(
    r"(</(?:think|thinking|thought|reasoning|seed:think)>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷"
    r"|<\|channel\|>final<\|message\|>)|<(?:think|thinking|thought|reasoning|seed:think)>"
    r"|<\|begin_of_thought\|>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>",
    re.I,
)
_END = re.compile(r"<\|(?:endoftext|end_of_text|eot_id|im_end|end)\|>|<end_of_turn>|</s>|<eos>", re.I)
# Where a base model starts the next question. Only at the start of a line, so prose is never cut.
_NEXT_QUESTION = re.compile(
    r"\n[^\S\n]*+(?:[#*]{1,4}+\s*+)?+(?:(?:Question|Problem|Exercise|Example|问题|题目|例题|例|【题目】|【问题】)"
    r"\s*+\d*+\s*+(?:\*\*\s*+)?+[:：.、]|Q\s*+\d*+\s*+[:：])",
    re.I,
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
    re.I,
)
# After a box, the beginning of its correction.
_CORRECTED = re.compile(
    r"\b(?:wait|no|not|actually|mis\w+|error|wrong|correct(?:ion|ed))\b|错|不对|更正|等等", re.I
)
_PHRASE = {
    "en": re.compile(
        r"\banswers?(?:\s++to\s++th(?:e|is)\s++(?:question|problem))?(?:\s++(?:should|must|would|will|therefore|thus"
        r"|then|now|has\s++to|turns\s++out\s++to|comes\s++out\s++to))*+\s*+(?:\*\*\s*+)?+"
        r"(?:is|are|be|equals|:|=)(?!\s++not\b)"
        r"(?:\s++(?:therefore|thus|then|simply|just|now|actually)\b)?+"
        r"(?:\s*+:)?\s*+(?:\*\*)?|####",
        re.I,
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
    re.I | re.DOTALL,
)
_AFTERTHOUGHT = re.compile(r"[,，]\s*+(?:(?:so|not|which)\b|不是|而不是).*", re.I | re.DOTALL)
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
        # A sentence of our own format on a line of its own, and the answer after a correction, outweigh it.
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
        return Extraction(bare_expression.number_in(phrases[0]) if kind == "number" else phrases[0], "phrase")
    unclosed = re.fullmatch(r"\\boxed\{(?!\})[^\n]*", text[max(0, text.rfind("\\boxed{")) :])
    number = "" if unclosed else bare_expression.last_expression(text)
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
        if not content or DENIED.search(text[max(0, start.start() - 30) : start.start()]):
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
        found = [(each, _sentence(text[each.end() : each.end() + LONGEST])) for each in matches]
        found = [pair for pair in found if pair[1] and not bare_expression.is_loop(pair[1])]
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
    return _AFTERTHOUGHT.sub("", REASON.sub("", text, count=1), count=1).rstrip(".,，。;；!！").strip()


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
