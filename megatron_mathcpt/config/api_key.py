"""The API key of a server, and how it is recognised in what the server sends.

A reply with the key in it is not accepted, its text is not stored; in a message a quoted text is withheld.
Recognised are the key itself, in any case or width, split by anything but ASCII letters and digits; the same
escaped as in JSON, Python, HTML or a URL, several times over; and the key in base64 or hexadecimal. A key of
fewer than 8 letters and digits, such as the `EMPTY` of a local server, is found as it is, in messages only.
"""

import base64
import re
import unicodedata
from urllib.parse import unquote

from megatron_mathcpt.errors import one_line

# A character by its number, in sixteens or tens; or a sign, by its name, that is no letter and no digit.
_ESCAPE = re.compile(
    r"\\u([0-9a-f]{4})|\\x([0-9a-f]{2})|(?:\\u\{|&#x)0{0,9}([0-9a-f]{1,5})[};]?|&#0{0,9}([0-9]{1,6});?"
    r"|\\[a-z]|&[a-z]{2,9};",
    re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[^0-9a-z]+")


class ApiKey:
    """`value` is empty where a server needs no key."""

    def __init__(self, value: str) -> None:
        self.value = value
        forms = {_bare(value), value.encode().hex()}
        for before in range(3):  # bytes before the key in a group of three of base64
            # Only the characters that no byte before or after the key changes.
            text = base64.b64encode(bytes(before) + value.encode()).decode()
            forms.add(_bare(text[(0, 2, 3)[before] : (before + len(value)) * 8 // 6]))
        self._forms = forms if len(_bare(value)) >= 8 else set()

    def is_in(self, text: str) -> bool:
        """Whether the key is recognised in `text`; in time linear in its length."""
        if not self._forms:
            return False
        for _ in range(4):  # escapes in escapes
            bare = _bare(text)
            if any(form in bare for form in self._forms):
                return True
            plain = unquote(_ESCAPE.sub(_unescape, text))
            if plain == text:
                return False
            text = plain
        return False

    def quote(self, text: str, most: int) -> str:
        """A server's `text` for a message: one line of printable characters, without the key."""
        if self.is_in(text):
            return "withheld, as it contains the API key"
        # What is not printable could move the cursor of a terminal.
        shown = one_line("".join(sign if sign.isprintable() else " " for sign in text[: 10 * most]))
        return (shown.replace(self.value, "***") if self.value else shown)[:most]


def _bare(text: str) -> str:
    # In parts, as a long run of combining marks is sorted in quadratic time.
    parts = (unicodedata.normalize("NFKD", text[at : at + 256]) for at in range(0, len(text), 256))
    return _SEPARATORS.sub("", (text if text.isascii() else "".join(parts)).casefold())


def _unescape(found: re.Match[str]) -> str:
    return chr(int(found[4]) if found[4] else int(found[1] or found[2] or found[3] or "20", 16))
