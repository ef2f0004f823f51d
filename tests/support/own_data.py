"""Files of own data, as a user brings them: problems and texts as JSON lines."""

import json
import random
from pathlib import Path

from megatron_mathcpt.data.problems import ProblemMix, training_problems

_WORDS = [
    "the",
    "of",
    "a",
    "number",
    "line",
    "point",
    "set",
    "sum",
    "limit",
    "value",
    "map",
    "proof",
    "state",
]


def write_problems(path: Path, count: int) -> Path:
    """`count` generated English problems with id, question, solution and answer."""
    made = training_problems(ProblemMix(train_problems=count, chinese_share=0.0), 5)
    rows = (one.model_dump(include={"id", "question", "solution", "answer"}) for one in made)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(path: Path, count: int) -> Path:
    """`count` texts of 120 random words."""
    choose = random.Random(7)
    texts = (f"Text {number}. " + " ".join(choose.choices(_WORDS, k=120)) for number in range(count))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
