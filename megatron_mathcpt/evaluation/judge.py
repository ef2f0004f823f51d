"""From a model's output to the outcome of one item."""

from dataclasses import dataclass

from megatron_mathcpt.answers import Extraction, Verdict, extract_answer, grade
from megatron_mathcpt.formats.benchmark import Item


@dataclass(frozen=True)
class Outcome:
    """What was found in an output, and what the grader says of it."""

    extraction: Extraction
    verdict: Verdict


def judge(item: Item, output: str) -> Outcome:
    """Extract and grade; a choice may be answered by its letter or by the text of the right option."""
    extraction = extract_answer(output, item.lang, item.type)
    verdict = grade(item.answer, extraction.text, item.type)
    text = _option_text(item)
    if verdict.equal is not True and text and extraction.method in ("box", "phrase"):
        by_text = grade(text, extraction.text)
        verdict = by_text if by_text.equal else verdict
    return Outcome(extraction, verdict)


def _option_text(item: Item) -> str:
    if item.type != "choice":
        return ""
    if item.choices:
        return item.choices["ABCDEFGH".index(item.answer)]
    return item.answer_text or ""
