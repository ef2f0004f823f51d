"""Small records in the schemas that the study's public sources are published in."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.adapters import ADAPTERS, last_boxed
from megatron_mathcpt.data.sources import Document, Skipped, list_shards, read_documents
from megatron_mathcpt.records import Problem

ARXIV = {"yymm": "0704", "arxiv_id": "0704.0001", "language": "en", "url": "https://arxiv.org/abs/0704.0001"}
WIKI = json.dumps({"title": "Pi", "url": "https://en.wikipedia.org/wiki/Pi", "language": "en"})
CODE = "<reponame>me/repo<filename>src/a.py<gh_stars>1-10\nx = 1 < 2\n"
STARRED = {"max_stars_repo_path": "src/a.py", "max_stars_repo_name": "me/repo", "max_stars_count": 3}
WEB = {"url": "http://a", "text": "T", "date": "2023-01-01 00:00:00", "metadata": '{"extraction_info": {}}'}
MIXED = {"text_list": ["One", None, "Two"], "image_list": [None, "http://i.png", None], "URL": "http://b"}
TEXTS: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("redpajama", {"text": "T", "meta": ARXIV}, ("0704.0001", "T")),
    ("redpajama", {"text": "T", "meta": {"source": "c4", "url": "http://a.b"}}, ("http://a.b", "T")),
    ("redpajama", {"text": "T", "meta": WIKI}, ("https://en.wikipedia.org/wiki/Pi", "T")),
    ("algebraic_stack", {"text": "T", "meta": {"hexsha": "ab12", "lang": "Lean"}}, ("ab12", "T")),
    ("starcoder", {**STARRED, "id": "17", "content": CODE}, ("me/repo/src/a.py", "x = 1 < 2")),
    ("starcoder", {"id": "17", "content": "<html>\n</html>"}, ("17", "<html>\n</html>")),
    ("open_web_math", WEB, ("http://a", "T")),
    ("infimm_webmath", MIXED, ("http://b", "One\n\nTwo")),
]
NUMINA = {"problem": "1+1?", "solution": "It is $\\boxed{2}$.", "source": "cn_k12"}
LILA = {"input": "1+1?", "output_program": "answer=1+1\nprint(answer)", "split": "train", "dataset": "asdiv"}
VALID = {"problem_type": "Algebra", "problem_is_valid": "Yes", "solution_is_valid": "Yes", "synthetic": False}
ADDED = {"Input": "1+1?", "Output Program": ["print(1+1)"], "Output Answer": ["2"], "Split": "train"}
SOLVED = ("1+1?", "It is $\\boxed{2}$.", "2", "cn_k12")
PROBLEMS: list[tuple[str, dict[str, Any], tuple[str, ...] | str]] = [
    ("numinamath", {**NUMINA, "messages": [{"role": "user", "content": "1+1?"}]}, SOLVED),
    ("numinamath", {**NUMINA, **VALID, "answer": "2"}, SOLVED),
    ("numinamath", {**NUMINA, "answer": "proof"}, "no_answer"),
    ("numinamath", {**NUMINA, "solution": "Clear."}, "no_answer"),
    ("numinamath", {**NUMINA, "answer": "2", "problem_is_valid": "Incomplete"}, "invalid_at_source"),
    ("lila", {**LILA, "output_answer": "2"}, ("1+1?", "answer=1+1\nprint(answer)", "2", "asdiv")),
    ("lila", ADDED, ("1+1?", "print(1+1)", "2", "made")),
    ("lila", {**LILA, "output_answer": ""}, "no_answer"),
    ("lila", {**ADDED, "Output Program": []}, "no_solution"),
]


def read_one(tmp_path: Path, kind: str, adapter: str, row: dict[str, Any]) -> Any:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    source = Source.model_validate({"pool": "p", "path": str(path), "kind": kind, "adapter": adapter})
    (shard,) = list_shards({"made": source})
    ((record,),) = read_documents(shard, source)
    return record


@pytest.mark.parametrize(("adapter", "row", "expected"), TEXTS)
def test_text(tmp_path: Path, adapter: str, row: dict[str, Any], expected: tuple[str, str]) -> None:
    document = read_one(tmp_path, "text", adapter, row)
    assert (document.id, document.text) == expected


@pytest.mark.parametrize(("adapter", "row", "expected"), PROBLEMS)
def test_problem(tmp_path: Path, adapter: str, row: dict[str, Any], expected: tuple[str, ...] | str) -> None:
    record = read_one(tmp_path, "problem", adapter, row)
    if isinstance(expected, str):
        assert record == Skipped("made/a.jsonl#1", expected, 1)
    else:
        assert isinstance(record, Document) and isinstance(record.problem, Problem)
        problem = record.problem
        assert (problem.question, problem.solution, problem.answer, problem.source) == expected
        assert set(problem.extra) <= {"problem_type", "question_type", "synthetic"}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("value", [None, 1, [], [None], {}, "{", float("nan")])
def test_wrong_types_are_rejects_or_named_drops(tmp_path: Path, adapter: str, value: Any) -> None:
    kind = "problem" if adapter in ("numinamath", "lila") else "text"
    names = ("text", "meta", "content", "url", "URL", "text_list", "problem", "solution", "answer", "input")
    record = read_one(tmp_path, kind, adapter, dict.fromkeys(names, value))
    assert type(record).__name__ in ("Reject", "Skipped", "Document")


def test_last_boxed_takes_balanced_braces() -> None:
    assert last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{1") is None
    assert last_boxed("none") is None
