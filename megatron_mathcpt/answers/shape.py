"""The outer shape of a normalised answer: lists, brackets, equations. Text in, pieces of text out."""

import re
from dataclasses import dataclass

_NAME = re.compile(
    r"\|[A-Za-z]{1,3}\||(?:\\[A-Za-z]+\s*)*(?:[A-Za-z]{0,3}|\\[A-Za-z]+\s*(?:\{[^{}]*\})?)(?:_(?:\{[^{}]*\}|\w))?'*(?:\^\{?-1\}?)?\s*"
    r"(?:\([A-Za-z_0-9,+\-]{1,5}\))?"
)
_RELATION = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
LIST_SEPARATOR = r",|;|(?<![A-Za-z])or(?![A-Za-z])|(?<![A-Za-z])and(?![A-Za-z])|或者?|和|与|以及|及|且|并且"


@dataclass(frozen=True)
class Group:
    """Items between brackets; `opening` is one of ( [ {."""

    opening: str
    items: tuple[str, ...]
    closing: str

    @property
    def is_set(self) -> bool:
        """Whether the brackets are braces."""
        return self.opening == "{"


@dataclass(frozen=True)
class Equation:
    """Sides of `a = b (= c ...)`; `name` is the left side when that only names the right one."""

    sides: tuple[str, ...]
    name: str

    @property
    def right(self) -> str:
        """The last side, which is the simplest one in a chain."""
        return self.sides[-1]


def split_top(text: str, separator: str) -> list[str]:
    """Pieces of `text` between matches of `separator` outside all brackets; empty pieces are dropped."""
    pattern = re.compile(separator)
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        depth += (character in "([{") - (character in ")]}")
        found = pattern.match(text, position) if depth == 0 else None
        if found and found.end() > position:
            pieces.append(text[start:position])
            position = start = found.end()
        else:
            position += 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def read_list(text: str) -> list[str]:
    """Items of an answer that names several; one item when it names one."""
    if not re.fullmatch(r"-?[\d,.]+", text):  # 24,112 alone may be two numbers; in other company it is one
        text = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    pieces = split_top(text, LIST_SEPARATOR)
    return [found for piece in pieces for found in _signs(piece)]


def _signs(text: str) -> list[str]:
    """The two values of an answer with a plus-minus sign."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return [upper.removeprefix("+").strip(), lower]


def read_group(text: str) -> Group | None:
    """The bracket that holds the whole answer, as a point, vector or set; a point's letter is dropped."""
    text = re.sub(r"^[A-Z]('|_\{?\w\}?)?\s*(?=\()", "", text)
    opening = re.match(r"\\\{|[(\[]", text)
    closing = re.search(r"(\\\}|[)\]])$", text)
    if not opening or not closing or not _one_group(text):
        return None
    inside = text[opening.end() : closing.start()]
    items = split_top(inside, r",|;" if opening.group() != "\\{" else LIST_SEPARATOR)
    if len(items) < 2 and opening.group() != "\\{":
        return None
    items = [found for item in items for found in _signs(item)] if opening.group() == "\\{" else items
    return Group(opening.group()[-1], tuple(items), closing.group()[-1])


def _one_group(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ")]}":
            return position == len(text) - 1
    return False


def read_equation(text: str) -> Equation | None:
    """The equation that `text` is; None for an inequality or anything else."""
    if "=" not in text or has_relation(text):
        return None
    sides = tuple(split_top(text, "="))
    if len(sides) < 2:
        return None
    left = sides[0]
    chinese = re.fullmatch(r"[^=]*[一-鿿][^=]*", left)
    named = chinese or (_NAME.fullmatch(left) and not re.fullmatch(r"[\d.]+", left))
    return Equation(sides, re.sub(r"\s", "", left) if named else "")


def has_relation(text: str) -> bool:
    """Whether an order relation or `\\ne` is in the text."""
    return bool(_RELATION.search(text))


def read_matrix(text: str) -> tuple[tuple[str, ...], ...] | None:
    """Rows of a LaTeX matrix or column vector that is the whole answer."""
    found = re.fullmatch(
        r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\s*\{[clr|]+\})?(.*)\\end\s*\{\1\}", text, re.DOTALL
    )
    if not found:
        return None
    rows = [row for row in re.split(r"\\\\|\\cr", found.group(2)) if row.strip()]
    return tuple(tuple(cell.strip() for cell in row.split("&")) for row in rows)
