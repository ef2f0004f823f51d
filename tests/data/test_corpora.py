"""Corpora from this machine and from own data: same bytes again, bad lines named, held-out items kept out."""

import gzip
import json
import re
from pathlib import Path

import pytest

from megatron_mathcpt.data.corpora import answer_type, make_corpora, package, split_problems
from megatron_mathcpt.data.problems import ProblemMix
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.records import Problem

MIX = ProblemMix(train_problems=50, evaluation_problems={"en": 4, "zh": 2})


def problem_row(number: int, **fields: object) -> dict[str, object]:
    row = {
        "id": f"p{number}",
        "question": f"What is {number} + 1?",
        "solution": f"{number} + 1 = {number + 1}",
    }
    return {**row, "answer": str(number + 1), "lang": "zh" if number % 3 == 0 else "en", **fields}


def write_own(folder: Path, problems: list[dict[str, object]]) -> Path:
    folder.mkdir()
    with gzip.open(folder / "general.jsonl.gz", "wt") as file:
        file.write(json.dumps({"id": "g", "text": "Some text."}) + "\n")
    (folder / "math_corpus.jsonl").write_text(json.dumps({"id": "m", "text": "Let $x$ be."}) + "\n\n")
    lines = [json.dumps(row, ensure_ascii=False) for row in problems]
    (folder / "problem_solving.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_default_corpora_are_whole_and_the_same_twice(tmp_path: Path) -> None:
    first = make_corpora(tmp_path / "a", seed=3, mix=MIX)
    assert first.outputs == make_corpora(tmp_path / "b", seed=3, mix=MIX).outputs
    assert first.outputs["general.jsonl"].bytes > 2e6
    assert first.outputs["math_corpus.jsonl"].bytes > 4e6
    for pool in ("general", "math_corpus", "problem_solving"):
        ids = [row["id"] for row in rows(tmp_path / "a" / f"{pool}.jsonl")]
        assert len(set(ids)) == len(ids) == first.counts[pool]
    by_id = {row["id"]: str(row["text"]) for row in rows(tmp_path / "a" / "general.jsonl")}
    assert by_id["functools:reduce"].startswith("reduce(") and "iterable" in by_id["functools:reduce"]
    assert 'The "assert" statement' in by_id["pydoc_data.topics:assert"]
    held_out = rows(tmp_path / "a" / "evaluation" / "heldout_zh.jsonl")
    assert [row["lang"] for row in held_out] == ["zh", "zh"]
    with pytest.raises(ManifestError, match="another config 'seed'"):
        make_corpora(tmp_path / "a", seed=4, mix=MIX)


def test_docstrings_are_read_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module would end the test if it were imported; its second `f` gets an id of its own."""
    module = tmp_path / "trap"
    module.mkdir()
    body = 'raise SystemExit("imported")\n\ndef f(x, *, y=1):\n    """' + "Add a number. " * 8 + '"""\n'
    body += body.partition("\n")[2]
    (module / "__init__.py").write_text(body)
    (module / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [(row["id"], row["text"]) for row in package("trap")] == [
        ("trap:f", "f(x, *, y=1)\n" + ("Add a number. " * 8).strip()),
        ("trap:f.2", "f(x, *, y=1)\n" + ("Add a number. " * 8).strip()),
    ]
    with pytest.raises(DataError, match="'no_such_package': not installed"):
        list(package("no_such_package"))


def bare(problems: list[dict[str, object]]) -> list[str]:
    return ["".join(str(row["question"]).lower().split()) for row in problems]


def test_own_problems_are_mapped_and_held_out(tmp_path: Path) -> None:
    problems = [problem_row(n) for n in range(1, 60)]
    problems += [problem_row(n, id=f"copy{n}", question=f"what  IS {n} + 1?") for n in range(1, 60)]
    problems.append(problem_row(99, lang="en", stage="middle", steps=2, difficulty="3"))
    out, own = tmp_path / "out", write_own(tmp_path / "own", problems)
    whole = make_corpora(out, own, mix=MIX)
    training = rows(out / "problem_solving.jsonl")
    held_out = {name: rows(out / "evaluation" / f"heldout_{name}.jsonl") for name in ("en", "zh")}
    assert {name: len(items) for name, items in held_out.items()} == {"en": 4, "zh": 2}
    asked = {*bare(held_out["en"]), *bare(held_out["zh"])}
    assert not asked & set(bare(training))
    assert len(training) == sum(question not in asked for question in bare(problems))
    kept = next(row for row in training if row["id"] == "p99")
    assert (kept["stage"], kept["steps"], kept["extra"]) == ("middle", 2, {"difficulty": "3"})
    # a folder left without a manifest is made again
    (out / "manifest.json").unlink()
    (out / "general.jsonl").write_bytes(b"torn")
    assert make_corpora(out, own, mix=MIX).outputs == whole.outputs


def test_a_small_set_keeps_four_fifths_for_training() -> None:
    problems = [Problem(id=str(n), question=f"{n}?", solution="s", answer="1") for n in range(10)]
    training, held_out = split_problems(problems, ProblemMix(), seed=0)
    assert (len(training), len(held_out["en"]), len(held_out["zh"])) == (8, 2, 0)
    with pytest.raises(DataError, match="4 problems are too few to hold any out"):
        split_problems(problems[:4], ProblemMix(), seed=0)


TYPES = {"12": "number", "-1,200.5": "number", "3/4": "number", "B": "choice", "C": "latex", "2x": "latex"}


@pytest.mark.parametrize(("answer", "kind"), TYPES.items())
def test_answer_type(answer: str, kind: str) -> None:
    problem = Problem(id="1", question="Which?\nA. 1\nB. 2", solution="s", answer=answer)
    assert answer_type(problem) == kind


PROBLEMS, SOLVED = "problem_solving.jsonl", b'"solution": "s", "answer": "1"}\n'
BAD_LINES = [
    (PROBLEMS, b"", ": empty"),
    (PROBLEMS, b"{not json}\n", ":1: not JSON"),
    (PROBLEMS, b'{"question": "\xff"}\n', ":1: not valid UTF-8"),
    (PROBLEMS, b"[1]\n", ":1: expected a JSON object"),
    (PROBLEMS, b'\n{"id": "1", ' + SOLVED, ":2: record without question"),
    (PROBLEMS, b'{"question": "", ' + SOLVED, ":1: record without question"),
    (PROBLEMS, b'{"question": "q", "lang": "fr", ' + SOLVED, ":1: field 'language'"),
    (PROBLEMS, None, ": not found"),
    ("math_corpus.jsonl", b'{"id": "1", "text": " "}\n', ":1: record without text"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    own = write_own(tmp_path / "own", [problem_row(number) for number in range(40)])
    (own / name).unlink()
    if content is not None:
        (own / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{name}{message}")):
        make_corpora(tmp_path / "out", own)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_local_corpora(corpora_dir: Path, tmp_path: Path) -> None:
    manifest = make_corpora(tmp_path / "out", corpora_dir)
    assert (manifest.counts["heldout_en"], manifest.counts["heldout_zh"]) == (200, 100)
    assert manifest.counts["problem_solving"] + 300 <= 13_203
    items = rows(tmp_path / "out" / "evaluation" / "heldout_en.jsonl")
    assert {row["type"] for row in items} == {"number", "choice"}
