"""From a server's text to a verified solution: tags read strictly, answers checked, parts laid out.

Tags are just those asked for, in their order, once each, nothing outside. Only what a server wrote is ever
read; a seed or a student's attempt that holds one of our tags is rejected before a request is made
(`refuse_tags`), so no text of theirs can pass for a verdict. Final answers are compared by mathematics: the
teacher's word is recorded beside it, never taken for it.
"""

import re
from itertools import pairwise

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config.synthesis import Layout, Verification
from megatron_mathcpt.records import Language, Problem
from megatron_mathcpt.synthesis.method import Check, Rejected

TAGS = (
    *("response", "solution_2", "solution_3"),
    *("statement", "question_1", "solution_1", "question_2", "check"),
    *("wrong_step", "correction"),
)

_ANY_TAG = re.compile(rf"<\s*[/\\]?\s*(?:{'|'.join(TAGS)})\b[^>]{{0,40}}>", re.IGNORECASE)

_WORDS = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")


def find_tag(text: str) -> str | None:
    """The first of our tags in `text`, in any spelling."""
    found = _ANY_TAG.search(text)
    return found.group() if found else None


def refuse_tags(**texts: str) -> None:
    """`Rejected` if a text that others wrote, named as given, holds one of our tags."""
    for name, text in texts.items():
        if tag := find_tag(text):
            raise Rejected(f"{name} imitates our tags", tag, text)


def read_tags(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """The content of each tag; `Rejected` as malformed, with what was expected, for anything else."""
    values = {}
    rest = text.strip()
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if not rest.startswith(opening):
            raise Rejected("malformed", f"expected {opening}, found {rest[:60]!r}", text)
        content, closed, rest = rest.removeprefix(opening).partition(closing)
        if not closed or not content.strip() or find_tag(content):
            raise Rejected("malformed", f"{opening} is empty, not closed, or holds another tag", text)
        values[name] = content.strip()
        rest = rest.lstrip()
    if rest:
        raise Rejected("malformed", f"text after the last tag: {rest[:60]!r}", text)
    return values


def opening_verdict(text: str, name: str, allowed: tuple[str, ...]) -> str:
    """The first word of tag `name` at the start of `text`, one of `allowed`; what follows it is a reason."""
    start = re.match(rf"\s*<{name}>\s*([a-z]+)", text)
    if not start or start.group(1) not in allowed:
        raise Rejected("malformed", f"expected <{name}> with one of {', '.join(allowed)}", text)
    return start.group(1)


def check_answer(seed: Problem, text: str) -> Check:
    """The final answer of `text` against the seed's."""
    found = extract_answer(text, seed.language).text
    if not found:
        return Check("", "wrong", "no final answer")
    verdict = grade(seed.answer, found)
    return Check(found[:200], verdict.status, verdict.reason)


def require(
    needed: dict[str, Check],
    rules: Verification,
    claims: dict[str, str],
    raw: str,
    recorded: dict[str, Check] | None = None,
) -> None:
    """`Rejected` unless every needed check is correct, or not gradable and kept by the rules."""
    checks = recorded or needed
    for name, check in needed.items():
        if check.verdict == "wrong":
            raise Rejected("wrong final answer", f"{name}: {check.reason}", raw, claims=claims, checks=checks)
        if check.verdict == "ungraded" and rules.ungraded == "drop":
            raise Rejected(
                "answer not gradable", f"{name}: {check.reason}", raw, claims=claims, checks=checks
            )


def similarity(first: str, second: str) -> float:
    """Jaccard similarity, 0 to 1, of the adjacent pairs of words, numbers and signs (Chinese: characters)."""
    a, b = (set(pairwise(_WORDS.findall(text.lower()))) for text in (first, second))
    if not a or not b:
        return float(first.split() == second.split())
    common = len(a & b)
    return common / (len(a) + len(b) - common)


_FINAL_ANSWER = re.compile(r"(?:^|(?<=\s)|(?<=[.。]))(?:The answer is|答案是)[^\n]*\Z")

# What leads a part in prose; the student's attempt and the solution of a new question need nothing.
_LEADS: dict[str, dict[Language, str]] = {
    "check": {"en": "Let me check this. It is {text}.", "zh": "检查一下，这个解答{text}。"},
    "wrong_step": {"en": "The first wrong step: ", "zh": "第一个错误的步骤："},
    "correction": {"en": "Correction: ", "zh": "更正："},
    "solution_2": {"en": "First way: ", "zh": "解法一："},
    "solution_3": {"en": "Second way: ", "zh": "解法二："},
}
_VERDICTS: dict[str, dict[Language, str]] = {
    "correct": {"en": "right", "zh": "正确"},
    "wrong": {"en": "wrong", "zh": "有误"},
}


def lay_out(parts: tuple[tuple[str, str], ...], layout: Layout, language: Language) -> str:
    """The parts, (tag, text) in order, as one solution; an attempt never stands in a tag.

    The teacher's verdicts `accept` and `refuse` are no part of prose.
    """
    if layout == "tags":
        return "\n".join(text if tag == "attempt" else f"<{tag}>{text}</{tag}>" for tag, text in parts)
    lines = []
    for tag, text in parts:
        if tag == "check":
            lines.append(_LEADS[tag][language].format(text=_VERDICTS[text][language]))
        elif tag != "response":
            lines.append((_LEADS[tag][language] if tag in _LEADS else "") + text)
    prose = "\n".join(lines)
    # The final answer is written once, where the record becomes text (records.cpt_text).
    return _FINAL_ANSWER.sub("", prose).rstrip() or prose
