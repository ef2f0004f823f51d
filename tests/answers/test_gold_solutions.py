"""Every benchmark item's gold solution, as a model would write it, through the cut and the grader."""

import json
import os
from pathlib import Path

import pytest

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.records import NEXT_QUESTION, response_text

FOLDER = Path(os.environ.get("MATHCPT_BENCHMARKS", Path(__file__).parents[3] / "shared" / "benchmarks"))
FILES = sorted(FOLDER.glob("*/*.jsonl"))
# What a base model writes after its answer.
AFTER = ("", "\n\nQuestion: What is 2 + 2?\nSolution: 4\nThe answer is 4.", "<|end_of_text|>The answer is 4.")
# Solutions for items that have none: two paragraphs.
FILLER = {
    "en": "First we set $x = 3$ and find 5.\n\nThen we add them: 3 + 5 = 8.",
    "zh": "先设 $x=3$。\n\n再求和。",
}


def _generated(text: str) -> str:
    return text[: min((at for stop in NEXT_QUESTION if (at := text.find(stop)) >= 0), default=None)]


@pytest.mark.skipif(not FILES, reason=f"no benchmark sets in {FOLDER}; set MATHCPT_BENCHMARKS")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_gold_solutions_survive_the_cut_and_are_right(path: Path) -> None:
    wrong = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        item = json.loads(line)
        solutions = [item["solution"]] if "solution" in item else ["", FILLER[item["lang"]]]
        for solution in solutions:
            text = response_text(solution, item["answer"], item["lang"]) + AFTER[number % len(AFTER)]
            found = extract_answer(_generated(text), item["lang"], item["type"])
            if not grade(item["answer"], found.text, item["type"]).equal:
                wrong.append((item["id"], item["answer"], found))
    assert not wrong, wrong[:5]
