"""Documents, problems and a small corpus with known contents, for the data tests."""

import json
import random
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus

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


# A small corpus whose every number can be worked out by hand, built for real. Pool `general`: `wiki` of two
# files and `web`. Pool `problem_solving`: `easy` and `hard` take their parts of one file, `numina` has an
# adapter. The second wiki file contains a copy, a near copy, a leak, a short text and a hostile one.
HOSTILE_ID = "hostile\x1b[2J</script><script>window.hacked = 3</script>"
HOSTILE = "Ends the page </script><script>window.hacked = 1</script><img src=x onerror='hacked = 2'> &amp;"
ESCAPES = "\x1b[2J[bold]red[/bold] :smile: 小明有三个苹果，他又买了两个，现在一共有几个苹果？ \u202ereversed"
ITEM = "A farmer keeps seventeen grey goats and nine hens in one yard. How many legs?"


def texts() -> list[str]:
    """The ten documents of the first wiki file."""
    random_ = random.Random(11)
    return ["\n".join(sentence(random_) for _ in range(4 + n)) for n in range(10)]


def write_raw(folder: Path) -> Path:
    """The raw files, and the benchmark."""
    first: list[Any] = [{"id": f"wiki{n}", "text": text} for n, text in enumerate(texts())]
    a = write_lines(folder / "wiki" / "a.jsonl", first)
    lines = a.read_text().splitlines(keepends=True)
    # line 3 is blank, line 5 broken: wiki2 is on line 4, wiki9 on line 12
    a.write_text("".join([*lines[:2], "\n", lines[2], '{"id": "torn", "te\n', *lines[3:]]))
    second = {
        "copy": texts()[0].upper(),
        "near": "other " + texts()[1].partition(" ")[2],
        "leak": f"Intro. {ITEM} Outro.",
        "short": "tiny",
        HOSTILE_ID: HOSTILE,
        "escapes": ESCAPES,
    }
    write_lines(folder / "wiki" / "b.jsonl", [{"id": key, "text": text} for key, text in second.items()])
    random_ = random.Random(12)
    web = [{"text": sentence(random_, 30)}, {"id": "wiki2", "text": sentence(random_, 30)}]
    write_lines(folder / "web.jsonl", [*web, {"id": "web2", "text": texts()[2]}])
    problems = [problem(n, steps=n % 5) for n in range(20)]
    # a copy whose own fields look like the place of another record
    problems.append(problem(0, id="again", steps=0, shard="wiki-00000", line=2))
    write_lines(folder / "problems.jsonl", problems)
    sum_ = {"problem": "What is 5 + 6?", "solution": "Count on from five: eleven.", "answer": "11"}
    write_lines(folder / "numina.jsonl", [sum_, {**sum_, "answer": "proof"}])
    write_lines(folder / "benchmark" / "test.jsonl", [{"id": "b0", "question": ITEM}])
    return folder


def build_inspected(folder: Path) -> Path:
    """The finished corpus in `folder / corpus`; its raw files lie in `folder / raw`."""
    raw = write_raw(folder / "raw")
    kind = {"pool": "problem_solving", "kind": "problem"}
    problems = kind | {"path": str(raw / "problems.jsonl")}
    sources = {
        "easy": {**problems, "select": {"step_rule": "field", "max_steps": 2}},
        "hard": {**problems, "select": {"step_rule": "field", "min_steps": 3}},
        "numina": {**kind, "path": str(raw / "numina.jsonl"), "adapter": "numinamath"},
        "wiki": {"pool": "general", "path": str(raw / "wiki"), "reject_limit": 0.2},
        "web": {"pool": "general", "path": str(raw / "web.jsonl")},
    }
    own = {"name": "inspected", "seed": 3, "sources": sources, "tokenizer": {"vocab_size": 400}}
    config = Corpus.model_validate(tree(raw) | own | {"validation_fraction": 0.3})
    build_corpus(config, folder / "corpus", workers=1)
    return folder / "corpus"
