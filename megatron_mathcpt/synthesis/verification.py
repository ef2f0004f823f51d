"""Final answers compared by mathematics; the teacher's word is recorded beside it, never taken for it."""

import re
from itertools import pairwise

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config.synthesis import Verification
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import Check, Rejected

_WORDS = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")


def check_answer(seed: Problem, text: str) -> Check:
    """The final answer of `text` against the seed's."""
    found = extract_answer(text, seed.language).text
    if not found:
        return Check("", "wrong", "no final answer")
    verdict = grade(seed.answer, found)
    return Check(found[:200], verdict.status, verdict.reason)


def similarity(first: str, second: str) -> float:
    """Jaccard similarity, 0 to 1, of the adjacent pairs of words, numbers and signs (Chinese: characters)."""
    a, b = _pairs(first), _pairs(second)
    if not a or not b:
        return float(first.split() == second.split())
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def _pairs(text: str) -> set[tuple[str, str]]:
    words = _WORDS.findall(text.lower())
    return set(pairwise(words))


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
            raise Rejected("wrong final answer", f"{name}: {check.reason}", raw, claims, checks)
        if check.verdict == "ungraded" and rules.ungraded == "drop":
            raise Rejected("answer not gradable", f"{name}: {check.reason}", raw, claims, checks)
