"""How accepted parts become the solution text: tags kept, or prose.

The study does not say which its training text used; `layout` in the config chooses.
"""

import re

from megatron_mathcpt.config.synthesis import Layout
from megatron_mathcpt.records import Language

_FINAL_ANSWER = re.compile(r"(?:^|(?<=\s)|(?<=[.。]))(?:The answer is|答案是)[^\n]*\Z")
_LEADS: dict[Language, dict[str, str]] = {
    "en": {
        "attempt": "",
        "response": "",
        "check": "Let me check this. It is {text}.",
        "wrong_step": "The first wrong step: ",
        "correction": "Correction: ",
        "solution_2": "First way: ",
        "solution_3": "Second way: ",
        "statement": "In other words: ",
        "solution": "",
    },
    "zh": {
        "attempt": "",
        "response": "",
        "check": "检查一下，这个解答{text}。",
        "wrong_step": "第一个错误的步骤：",
        "correction": "更正：",
        "solution_2": "解法一：",
        "solution_3": "解法二：",
        "statement": "换句话说：",
        "solution": "",
    },
}
_VERDICTS: dict[Language, dict[str, str]] = {
    "en": {"correct": "right", "wrong": "wrong"},
    "zh": {"correct": "正确", "wrong": "有误"},
}


def lay_out(parts: tuple[tuple[str, str], ...], layout: Layout, language: Language) -> str:
    """The parts, (tag, text) in order, as one solution; an attempt never stands in a tag.

    The teacher's verdicts `accept` and `refuse` are no part of prose.
    """
    if layout == "tags":
        return "\n".join(text if tag == "attempt" else f"<{tag}>{text}</{tag}>" for tag, text in parts)
    prose = "\n".join(_prose(tag, text, language) for tag, text in parts if tag != "response")
    # The final answer is written once, where the record becomes text (records.cpt_text).
    return _FINAL_ANSWER.sub("", prose).rstrip() or prose


def _prose(tag: str, text: str, language: Language) -> str:
    lead = _LEADS[language][tag]
    if tag == "check":
        return lead.format(text=_VERDICTS[language][text])
    return lead + text
