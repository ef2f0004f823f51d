"""The adversarial pairs of gold answer and prediction that `pairs.tsv` lists for graders."""

from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    equal: bool
    kind: str
    gold: str
    prediction: str


def load_answer_pairs() -> list[Pair]:
    lines = (Path(__file__).parents[1] / "answers" / "pairs.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line and line[0] in "=!"]
    return [Pair(mark == "=", kind, gold, prediction) for mark, kind, gold, prediction in rows]
