"""Normalising text without touching its mathematics.

NFC only: NFKC would turn x² into x2 and ½ into 1⁄2. Removed are byte order marks, control characters other
than tab and line feed, zero-width and bidirectional marks; line ends become line feeds; blank lines are at
most two.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any

_REMOVED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK = re.compile(r"\n{4,}")


def clean(text: str) -> str:
    """`text` in NFC with plain line ends and without invisible characters."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = _REMOVED.sub("", text)
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = _BLANK.sub("\n\n\n", text)
    return text.strip()


def mask_pii(text: str) -> str:
    """`text` with e-mail addresses replaced, by datatrove's rule, as FineWeb does.

    Not its IP addresses: to that rule the number of a theorem, 1.2.3.4, is one.
    """
    if "@" not in text:
        return text
    masked: str = _formatter().format(text)
    return masked


@lru_cache(maxsize=1)
def _formatter() -> Any:
    from datatrove.pipeline.formatters import PIIFormatter

    # One stand-in: several taken in turn would depend on what the process read before.
    return PIIFormatter(remove_ips=False, email_replacement="email@example.com")
