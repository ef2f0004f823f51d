"""A small corpus whose every number can be worked out by hand, built for real.

Pool `general`: `wiki` of two files and `web`. Pool `problem_solving`: `easy` and `hard` take their parts of
one file, `numina` has an adapter. The second wiki file holds a copy, a near copy, a leak, a short text and a
hostile one.
"""

import random
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from tests.data.made import problem, sentence, tree, write_lines

HOSTILE_ID = "hostile\x1b[2J</script><script>window.hacked = 3</script>"
HOSTILE = "Ends the page </script><script>window.hacked = 1</script><img src=x onerror='hacked = 2'> &amp;"
ESCAPES = "\x1b[2J[bold]red[/bold] :smile: 小明有三个苹果，他又买了两个，现在一共有几个苹果？ \u202ereversed"
ITEM = "A farmer keeps seventeen grey goats and nine hens in one yard. How many legs?"


def texts() -> list[str]:
    """The ten documents of the first wiki file."""
    random_ = random.Random(11)
    return ["\n".join(sentence(random_) for _ in range(4 + n)) for n in range(10)]


def near_text() -> str:
    """The second document with its first word changed."""
    return "other" + texts()[1][texts()[1].index(" ") :]


def write_raw(folder: Path) -> Path:
    """The raw files, and the benchmark."""
    first: list[Any] = [{"id": f"wiki{n}", "text": text} for n, text in enumerate(texts())]
    a = write_lines(folder / "wiki" / "a.jsonl", first)
    lines = a.read_text().splitlines(keepends=True)
    # line 3 is blank, line 5 broken: wiki2 stands on line 4, wiki9 on line 12
    a.write_text("".join([*lines[:2], "\n", lines[2], '{"id": "torn", "te\n', *lines[3:]]))
    second = {
        "copy": texts()[0].upper(),
        "near": near_text(),
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
