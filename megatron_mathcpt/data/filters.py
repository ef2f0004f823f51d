"""Quality rules: each gives a reason to drop a document, or None.

Bad characters are replacement and private-use characters, left by broken decoding. Repeated lines follow the
repetition rules of Gopher (arXiv 2112.11446, table A1, duplicate line character fraction 0.20 for web pages);
characters and not lines are counted, as a textbook repeats short lines such as "Solution:".
"""

import re

from megatron_mathcpt.config.corpus import Filter

_BAD = re.compile("[\ufffd\ue000-\uf8ff]")


def drop_reason(text: str, rules: Filter) -> str | None:
    """The first rule that `text` breaks, by name."""
    if not text:
        return "empty"
    if rules.min_characters is not None and len(text) < rules.min_characters:
        return "too_short"
    if rules.max_characters is not None and len(text) > rules.max_characters:
        return "too_long"
    if rules.max_bad_character_share is not None and _bad_share(text) > rules.max_bad_character_share:
        return "bad_characters"
    if rules.max_duplicate_line_share is not None and _duplicate_share(text) > rules.max_duplicate_line_share:
        return "repeated_lines"
    return None


def _bad_share(text: str) -> float:
    return 0.0 if text.isascii() else len(_BAD.findall(text)) / len(text)


def _duplicate_share(text: str) -> float:
    """Share of the characters that stand in lines already seen."""
    lines = text.split("\n")
    unique = set(lines)
    if len(unique) == len(lines):
        return 0.0
    total = sum(map(len, lines))
    return 1 - sum(map(len, unique)) / total if total else 0.0
