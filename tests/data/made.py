"""Made-up documents, problems and a corpus config for the data tests."""

import json
import random
from pathlib import Path
from typing import Any

NOUNS = ["apple", "river", "triangle", "train", "garden", "number", "window", "teacher", "planet", "engine"]
VERBS = ["counts", "divides", "weighs", "paints", "carries", "follows", "builds", "sells", "shares", "adds"]


def sentence(random_: random.Random, words: int = 12) -> str:
    chosen = (NOUNS if i % 2 else VERBS for i in range(words))
    return " ".join(random_.choice(names) + str(random_.randint(0, 99)) for names in chosen)


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def problem(number: int, **changes: Any) -> dict[str, Any]:
    a, b = number + 3, 2 * number + 1
    return {
        "id": f"p{number}",
        "question": f"Tom has {a} apples and buys {b} more. How many apples does Tom have now?",
        "solution": f"{a} + {b} = {a + b}",
        "answer": str(a + b),
        "lang": "en",
        "steps": 1,
        **changes,
    }


def tree(raw: Path) -> dict[str, Any]:
    kinds = {"problem_solving": "problem", "math_corpus": "text", "general": "text"}
    return {
        "name": "test",
        "seed": 7,
        "sources": {
            p: {"pool": p, "path": str(raw / f"{p}.jsonl"), "kind": kind} for p, kind in kinds.items()
        },
        "deduplicate": {},
        "decontaminate": {"benchmarks": [str(raw / "benchmark")]},
        "tokenizer": {"vocab_size": 500},
        "validation_fraction": 0.1,
    }
