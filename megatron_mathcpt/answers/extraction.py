"""Find the final answer in a model's output, and record how it was found.

Extraction is separate from grading, so that a wrong one can be seen among the stored responses. After its
answer a base model often writes a next question of its own; the text from there is cut off first.

It takes time linear in the output, whatever that contains: a repetition that could give back characters in
vain is possessive (`\\s*+`), no match begins inside a run that another one has read, and slices have a limit.
"""

import re
from typing import Literal, NamedTuple

Method = Literal["box", "phrase", "choice", "last_number", "none"]

# Where a base model starts the next question. Only at the start of a line, so prose is never cut.
_NEXT_QUESTION = re.compile(
    r"\n[^\S\n]*+(?:[#*]{1,4}+\s*+)?+(?:Question|Problem|Exercise|Example|Q|问题|题目|例题|例|【题目】|【问题】)"
    r"\s*+\d*+\s*+(?:\*\*\s*+)?+[:：.、]|<\|(?:endoftext|end_of_text|eot_id|im_end)\|>|</s>|<eos>",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*+")
_BARE = re.compile(r"[^\s$\\,.]+")  # `\boxed 5` is read too
_PHRASE = {
    "en": re.compile(
        r"\banswers?(?:\s++to\s++th(?:e|is)\s++(?:question|problem))?\s*+(?:\*\*\s*+)?+(?:is|are|:|=)"
        r"(?:\s*+:)?\s*+(?:\*\*)?|####",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"答案\s*+应?该?(?:是|为|选|等于|[:：])++\s*+[:：]?|选(?:择|项)?+\s*+[:：]?+(?=\s*+[(（]?[A-H])"
        r"|(?<![^\s。])答\s*+[:：]"
    ),
}
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.\\])[-+−]?\s?[$¥￥]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d++(?!\.\d))?\s?%?"
    r"|\\d?frac\{\d+\}\{\d+\}"
)
_CHOICE = re.compile(r"(?<![A-Za-z0-9\\])[(（]?([A-H])(?![A-Za-z0-9'’])")
_CHOICES = re.compile(r"(?<![A-Za-z0-9\\])([A-H](?:\s*+(?:[,、，和与]\s*+)?[A-H])*)(?![A-Za-z0-9'’])")

_LONGEST = 4000  # characters of a sentence with the answer, twice what can be graded


class Extraction(NamedTuple):
    text: str  # as written; empty if `method` is `none`
    method: Method


def extract_answer(output: str, language: str = "en", kind: str = "auto") -> Extraction:
    """Return the last box, final-answer phrase (of `language` first), choice letter, or number of `output`.

    Choice letters are searched for, and numbers cut out of phrases, only if the gold answer is of that kind.
    """
    text = _NEXT_QUESTION.split(output, maxsplit=1)[0].rstrip()
    if box := _last_box(text):
        return Extraction(box, "box")
    patterns = (_PHRASE[language], _PHRASE["zh" if language == "en" else "en"])
    phrases = (phrase for pattern in patterns for phrase in reversed(list(pattern.finditer(text))))
    phrase = next(filter(None, (_sentence(text[found.end() :][:_LONGEST]) for found in phrases)), "")
    if kind in ("choice", "multichoice"):
        return _choice(text, phrase, kind)
    if phrase:
        return Extraction(_number_in(phrase) if kind == "number" else phrase, "phrase")
    number = _last_number(text)
    return Extraction(number, "last_number" if number else "none")


def _last_box(text: str) -> str:
    """Return the content of the last box that is closed and not empty."""
    starts = [found.end() for found in _BOX.finditer(text)]
    if not starts:
        return ""
    opened: list[int] = []
    ends: dict[int, int] = {}  # place of each closed brace: of its end
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # \{ and \} are no braces
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            ends[opened.pop()] = brace.start()
    for start in reversed(starts):
        braced, bare = text.startswith("{", start), _BARE.match(text, start)
        content = text[start + 1 : ends.get(start, start)] if braced else bare[0] if bare else ""
        if content.strip():
            return content.strip()
    return ""


def _sentence(text: str) -> str:
    # A line break right after "The answer is:" does not end the sentence.
    text = text.lstrip(" \t*:：") if text[:1] != "\n" else text.lstrip("\n ")
    if display := re.match(r"\s*(\$\$.+?\$\$|\\\[.+?\\\])", text, re.DOTALL):
        return display[1]
    # A stop inside $...$ or between digits is part of the answer.
    end = re.search(r"\n|。|；\s*$|\.(?=\s+[A-Z一-鿿]|\s*$)|\.\s*(?=\n)|</", text)
    return (text[: end.start()] if end else text).strip().strip('*"“”').rstrip(".,，。;；!！").strip()


def _choice(text: str, phrase: str, kind: str) -> Extraction:
    pattern = _CHOICES if kind == "multichoice" else _CHOICE
    if phrase:
        found = pattern.search(phrase)
        return Extraction(found.group(1) if found else phrase, "phrase")
    letters = pattern.findall(text)
    return Extraction(letters[-1], "choice") if letters else Extraction("", "none")


def _number_in(phrase: str) -> str:
    # A short phrase may be a number with its unit, which the grader can read.
    bare = phrase.replace("$", "").strip()
    short = len(bare.split()) <= 3 and not re.search(r"[一-鿿]{3,}", bare)
    return phrase if short else _last_number(phrase) or phrase


def _last_number(text: str) -> str:
    numbers: list[str] = _NUMBER.findall(text)
    return numbers[-1].strip() if numbers else ""
