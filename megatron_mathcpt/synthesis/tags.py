"""Strict reading of tagged answers: just these tags, in this order, once each, nothing outside.

Only what a server wrote is ever read here. A seed or a student's attempt that holds one of our tags is
rejected before a request is made (`refuse_tags`), so no text of theirs can pass for a verdict.
"""

import re

from megatron_mathcpt.synthesis.method import Rejected

TAGS = (
    *("response", "solution_2", "solution_3"),
    *("statement", "question_1", "solution_1", "question_2", "check"),
    *("wrong_step", "correction"),
)
_ANY_TAG = re.compile(rf"<\s*[/\\]?\s*(?:{'|'.join(TAGS)})\b[^>]{{0,40}}>", re.IGNORECASE)


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
