"""Whether two final answers say the same; rules by kind, nothing the model wrote is ever executed."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Status = Literal["correct", "wrong", "ungraded"]


@dataclass(frozen=True)
class Verdict:
    """`equal` is None when the rules cannot tell; `reason` says which rule decided."""

    equal: bool | None
    reason: str

    @property
    def status(self) -> Status:
        """`correct`, `wrong` or `ungraded`."""
        return "ungraded" if self.equal is None else "correct" if self.equal else "wrong"


def grade(gold: str, prediction: str, kind: str = "auto") -> Verdict:
    """Compare `prediction` with `gold`; `kind` is the type of the gold's answer."""
    if not prediction.strip():
        return Verdict(False, "no answer")
    if kind in ("choice", "multichoice"):
        letters = [sorted(set(re.findall(r"(?<![a-z])[A-H](?![a-z])", text))) for text in (gold, prediction)]
        return Verdict(letters[0] == letters[1], "letters")
    numbers = [_number(text) for text in (gold, prediction)]
    if None not in numbers:
        return Verdict(numbers[0] == numbers[1], "numbers")
    return Verdict("".join(gold.split()) == "".join(prediction.split()), "text")


def _number(text: str) -> Fraction | None:
    bare = re.sub(r"[$,\s¥￥]|\\!", "", text).rstrip(".。")
    bare = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", bare).replace("−", "-")
    found = re.fullmatch(r"(.*=)?([-+]?\d+(?:\.\d+)?(?:/\d+)?)(%?)[^\d+*/^=\\]*", bare)
    if not found:
        return None
    try:
        return Fraction(found.group(2)) / (100 if found.group(3) else 1)
    except (ValueError, ZeroDivisionError):
        return None
