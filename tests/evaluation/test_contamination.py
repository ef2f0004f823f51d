"""Overlap by hand, and scores with and without the items that were seen."""

import json
from pathlib import Path

import pytest

from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.evaluation.contamination import (
    CHARACTERS,
    Overlap,
    measure_overlap,
    read_documents,
    report,
    scores_without,
)
from megatron_mathcpt.formats.benchmark import Item
from tests.evaluation.conftest import write_lines

WORDS = [f"word{chr(97 + number)}" for number in range(15)]


def _item(name: str, question: str, lang: str = "en") -> Item:
    return Item(id=name, question=question, answer="1", type="number", lang=lang)  # type: ignore[arg-type]


def test_share_of_runs_by_hand() -> None:
    # 15 words make 3 runs of 13; a document with the first 14 holds two of them, however it is typed.
    text = "x " + ", ".join(WORDS[:14]).upper() + " y"
    (overlap,) = measure_overlap([_item("a", " ".join(WORDS))], [text])
    assert overlap == Overlap("a", 3, 2)
    assert overlap.share == pytest.approx(2 / 3)
    assert measure_overlap([_item("a", " ".join(WORDS))], [" ".join(WORDS[:12])])[0].found == 0


def test_chinese_is_cut_into_characters() -> None:
    question = "小明从家到学校要走九百米他每分钟走六十米问他几分钟能走到学校"
    inside = question[3 : 3 + CHARACTERS]
    (overlap,) = measure_overlap([_item("z", question, "zh")], [f"前文，{inside[:8]}、{inside[8:]}。后文"])
    assert (overlap.runs, overlap.found) == (len(question) - CHARACTERS + 1, 1)


def test_short_item_is_one_run() -> None:
    items = [_item("s", "What is 7 times 8?"), _item("t", "What is 7 times 9?")]
    found = measure_overlap(items, ["He asked: what is 7 times 8, and left."])
    assert [(overlap.runs, overlap.found) for overlap in found] == [(1, 1), (1, 0)]


def test_scores_with_and_without() -> None:
    rows = [{"id": name, "correct": name in "abc"} for name in "abcdef"]
    overlaps = [Overlap(name, 4, found) for name, found in zip("abcdef", (4, 2, 0, 0, 0, 1), strict=True)]
    scores = scores_without(rows, overlaps, 0.5)
    assert (scores["all"]["n"], scores["all"]["correct"]) == (6, 3)
    assert (scores["clean"]["n"], scores["clean"]["accuracy"]) == (4, 0.25)
    assert (scores["overlapping"]["n"], scores["overlapping"]["accuracy"]) == (2, 1.0)
    with pytest.raises(EvaluationError, match="item 'f'"):
        scores_without(rows, overlaps[:5], 0.5)


def test_report_of_two_tasks_with_the_same_ids(tmp_path: Path) -> None:
    documents = write_lines(
        tmp_path / "documents" / "general.jsonl", [{"text": " ".join(WORDS)}, {"text": "no"}]
    )
    for task in ("first", "second"):
        write_lines(
            tmp_path / f"samples_{task}.jsonl", [{"id": "a", "correct": True}, {"id": "b", "correct": False}]
        )
    seen, other = " ".join(WORDS), " ".join(reversed(WORDS))
    tasks = {"first": [_item("a", seen), _item("b", other)], "second": [_item("a", other), _item("b", other)]}
    result = report(tmp_path, tasks, [documents.parent], 0.5)
    assert result["tasks"]["first"]["overlap"] == {"a": 1.0}
    assert result["tasks"]["first"]["clean"] == {"n": 1, "correct": 0, "accuracy": 0.0, "stderr": None}
    assert result["tasks"]["second"]["overlap"] == {}
    json.dumps(result, allow_nan=False)


def test_bad_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents here"):
        list(read_documents([tmp_path]))
    bad = write_lines(tmp_path / "x.jsonl", [{"text": "a"}, {"texts": "b"}])
    with pytest.raises(DataError, match=r"x\.jsonl:2: not a JSON object with a field `text`"):
        list(read_documents([bad]))
