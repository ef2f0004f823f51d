"""The list of adversarial pairs."""

from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """One line of `pairs.tsv`."""

    equal: bool
    kind: str
    gold: str
    prediction: str


def load_pairs() -> list[Pair]:
    """All pairs, in the order of the file."""
    lines = (Path(__file__).parent / "pairs.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line and line[0] in "=!"]
    return [Pair(mark == "=", kind, gold, prediction) for mark, kind, gold, prediction in rows]
