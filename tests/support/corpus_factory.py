"""Made-up documents and word problems, raw pools of them, and a small corpus built from them."""

import random
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from tests.support.json_lines import write_json_lines

NOUNS = ["apple", "river", "triangle", "train", "garden", "number", "window", "teacher", "planet", "engine"]
VERBS = ["counts", "divides", "weighs", "paints", "carries", "follows", "builds", "sells", "shares", "adds"]


def make_sentence(random_: random.Random, words: int = 12) -> str:
    chosen = (NOUNS if i % 2 else VERBS for i in range(words))
    return " ".join(random_.choice(names) + str(random_.randint(0, 99)) for names in chosen)


def make_problem(number: int, **changes: object) -> dict[str, Any]:
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


def write_raw_pools(folder: Path) -> Path:
    """Write general.jsonl, math_corpus.jsonl, problem_solving.jsonl and benchmark/test.jsonl."""
    random_ = random.Random(5)
    for pool, count in (("general", 60), ("math_corpus", 40)):
        texts = ["\n".join(make_sentence(random_) for _ in range(6)) for _ in range(count)]
        rows = [{"id": f"{pool}{n}", "text": text, "source": "made"} for n, text in enumerate(texts)]
        write_json_lines(folder / f"{pool}.jsonl", rows)
    write_json_lines(folder / "problem_solving.jsonl", [make_problem(n) for n in range(50)])
    item = {"id": "b0", "question": "How many legs have 17 goats?"}
    write_json_lines(folder / "benchmark" / "test.jsonl", [item])
    return folder


def corpus_settings(raw: Path) -> dict[str, Any]:
    kinds = {"problem_solving": "problem", "math_corpus": "text", "general": "text"}
    sources = {p: {"pool": p, "path": str(raw / f"{p}.jsonl"), "kind": kind} for p, kind in kinds.items()}
    return {
        "name": "test",
        "seed": 7,
        "sources": sources,
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


def wiki_texts() -> list[str]:
    """The ten documents of the first wiki file."""
    random_ = random.Random(11)
    return ["\n".join(make_sentence(random_) for _ in range(4 + n)) for n in range(10)]


def write_inspected_pools(folder: Path) -> Path:
    """Write the raw files of the corpus described above, and its benchmark."""
    first: list[Any] = [{"id": f"wiki{n}", "text": text} for n, text in enumerate(wiki_texts())]
    a = write_json_lines(folder / "wiki" / "a.jsonl", first)
    lines = a.read_text().splitlines(keepends=True)
    # line 3 is blank, line 5 broken: wiki2 is on line 4, wiki9 on line 12
    a.write_text("".join([*lines[:2], "\n", lines[2], '{"id": "torn", "te\n', *lines[3:]]))
    second = {
        "copy": wiki_texts()[0].upper(),
        "near": "other " + wiki_texts()[1].partition(" ")[2],
        "leak": f"Intro. {ITEM} Outro.",
        "short": "tiny",
        HOSTILE_ID: HOSTILE,
        "escapes": ESCAPES,
    }
    write_json_lines(folder / "wiki" / "b.jsonl", [{"id": key, "text": text} for key, text in second.items()])
    random_ = random.Random(12)
    web = [{"text": make_sentence(random_, 30)}, {"id": "wiki2", "text": make_sentence(random_, 30)}]
    write_json_lines(folder / "web.jsonl", [*web, {"id": "web2", "text": wiki_texts()[2]}])
    problems = [make_problem(n, steps=n % 5) for n in range(20)]
    # a copy whose own fields look like the place of another record
    problems.append(make_problem(0, id="again", steps=0, shard="wiki-00000", line=2))
    write_json_lines(folder / "problems.jsonl", problems)
    sum_ = {"problem": "What is 5 + 6?", "solution": "Count on from five: eleven.", "answer": "11"}
    write_json_lines(folder / "numina.jsonl", [sum_, {**sum_, "answer": "proof"}])
    write_json_lines(folder / "benchmark" / "test.jsonl", [{"id": "b0", "question": ITEM}])
    return folder


def build_inspected_corpus(folder: Path) -> Path:
    """The finished corpus in `folder / corpus`; its raw files lie in `folder / raw`."""
    raw = write_inspected_pools(folder / "raw")
    kind = {"pool": "problem_solving", "kind": "problem"}
    problems = kind | {"path": str(raw / "problems.jsonl")}
    sources = {
        "easy": {**problems, "select": {"max_steps": 2}},
        "hard": {**problems, "select": {"min_steps": 3}},
        "numina": {**kind, "path": str(raw / "numina.jsonl"), "adapter": "numinamath"},
        "wiki": {"pool": "general", "path": str(raw / "wiki"), "reject_limit": 0.2},
        "web": {"pool": "general", "path": str(raw / "web.jsonl")},
    }
    own = {"name": "inspected", "seed": 3, "sources": sources, "tokenizer": {"vocab_size": 400}}
    config = Corpus.model_validate(corpus_settings(raw) | own | {"validation_fraction": 0.3})
    build_corpus(config, folder / "corpus", workers=1)
    return folder / "corpus"
