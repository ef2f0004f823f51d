"""Whether two final answers say the same; rules by kind, nothing the model wrote is ever executed.

Conventions: exact mathematics (a rounded decimal is not the fraction); a unit or degree sign may be left out
but not differ; 50% is 0.5 but 12% is not 12; blanks keep their order, solutions do not; expanding is equal.
"""

import re
from dataclasses import dataclass
from typing import Literal

from megatron_mathcpt.answers.equality import UNDECIDED, equivalent
from megatron_mathcpt.answers.normalize import normalize
from megatron_mathcpt.answers.number_words import words_as_symbols
from megatron_mathcpt.answers.symbolic import verify

Status = Literal["correct", "wrong", "ungraded"]
MAX_CHARACTERS = 2000  # longer answers are left ungraded before anything is parsed
_MAX_DEPTH = 50
# Kinds of the benchmark files beside those that are asked for by name.
KINDS = (
    *("auto", "number", "latex", "expression", "choice", "multichoice", "cloze", "blanks"),
    *("multiple_choice", "solutions", "interval", "inequality", "coordinates"),
)
_LETTER = r"[A-H]"


@dataclass(frozen=True)
class Verdict:
    """`equal` is None when the rules cannot tell; `reason` says which rule decided."""

    equal: bool | None
    reason: str

    @property
    def status(self) -> Status:
        """`correct`, `wrong` or `ungraded`."""
        return "ungraded" if self.equal is None else "correct" if self.equal else "wrong"


def grade(gold: str, prediction: str, kind: str = "auto") -> Verdict:  # noqa: PLR0911 - one rule a return
    """Compare `prediction` with `gold`, an answer of `kind`; `auto` takes the kind from the gold.

    Pure and bounded: the same arguments give the same verdict, within seconds whatever the text.
    """
    if kind not in KINDS:
        raise ValueError(f"kind '{kind}': expected one of {', '.join(KINDS)}")
    if not prediction.strip():
        return Verdict(False, "no answer")
    if gold.strip() == prediction.strip():
        return Verdict(True, "same text")
    if max(len(gold), len(prediction)) > MAX_CHARACTERS or max(map(_depth, (gold, prediction))) > _MAX_DEPTH:
        return Verdict(None, "too long or nested too deep to grade")
    first, second = (words_as_symbols(normalize(text)) for text in (gold, prediction))
    if kind in ("choice", "multichoice", "multiple_choice") or (
        kind == "auto" and re.fullmatch(rf"\(?{_LETTER}\)?", first)
    ):
        letters = _letters(second)
        right = bool(letters) and _letters(first) == letters
        return Verdict(right, "letters" if letters else "no choice letter")
    if kind == "auto" and re.fullmatch(r"A?B?C?D?E?F?", first) and len(first) > 1:
        letters = _letters(second)
        if len(letters) > 1:
            return Verdict(set(first) == letters, "letters")
    equal, reason = equivalent(first, second, ordered=kind in ("cloze", "blanks") or ";" in first)
    if equal is None and reason != UNDECIDED:
        return _grade_symbolically(first, second)
    return Verdict(equal, reason)


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _letters(text: str) -> set[str]:
    """The choice letters an answer gives: one at its start, `B. 3 cm`, or a run, `ABD` or `A, B and D`."""
    first = re.match(rf"(?:option|choice|选项|选)?\s*\(?\s*({_LETTER})\s*(?:\)|[.:]|$)", text, re.IGNORECASE)
    several = re.match(rf"[(\s]*{_LETTER}(?:[\s,;、和与&)(]|and)*{_LETTER}(?![a-z])", text)
    if first and not several:
        return {first.group(1).upper()}
    return set(re.findall(rf"(?<![a-zA-Z]){_LETTER}(?![a-z])|(?<={_LETTER}){_LETTER}(?![a-z])", text))


def _grade_symbolically(gold: str, prediction: str) -> Verdict:
    """Last resort: math-verify, both ways, for mathematics outside our grammar."""
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}|[一-鿿]", prediction):
        return Verdict(False, "not an answer of this form")
    equal, reason = verify(gold, prediction)
    unread = equal is None and reason == "math-verify"
    return Verdict(False, "cannot be read") if unread else Verdict(equal, reason)
