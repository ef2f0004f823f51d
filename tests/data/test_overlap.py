"""Overlap of an evaluation's items by hand, and scores with and without the items that were seen."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.data.decontaminate import overlap_report, scores_without
from megatron_mathcpt.errors import DataError, EvaluationError
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import write_manifest
from tests.data.made import write_lines

WORDS = [f"word{chr(97 + number)}" for number in range(15)]
CHINESE = "小明从家到学校要走九百米他每分钟走六十米问他几分钟能走到学校又问他每小时能走多少千米呢"


def report(tmp_path: Path, tasks: dict[str, list[str]], texts: list[str]) -> dict[str, Any]:
    """Of tasks whose items have the ids a, b, ..., the first of each answered right."""
    files = {}
    for task, questions in tasks.items():
        rows = [{"id": name, "question": text} for name, text in zip("abc", questions, strict=False)]
        files[task] = write_lines(tmp_path / f"{task}.jsonl", rows)
        samples = [{"id": row["id"], "correct": row["id"] == "a"} for row in rows]
        write_lines(tmp_path / "evaluation" / f"samples_{task}.jsonl", samples)
    documents = write_lines(tmp_path / "documents" / "general.jsonl", [{"text": text} for text in texts])
    inputs = {f"task:{task}": hash_file(file) for task, file in files.items()}
    write_manifest(tmp_path / "evaluation", "evaluation", inputs=inputs, counts={}, config={})
    result = overlap_report(tmp_path / "evaluation", files, [documents.parent], 0.5)
    json.dumps(result, allow_nan=False)
    return result


@pytest.mark.parametrize(
    ("question", "text", "share"),
    [
        # 15 words make 3 runs of 13; a document with the first 14 holds two of them, however it is typed
        (" ".join(WORDS), "x " + ", ".join(WORDS[:14]).upper() + " y", 2 / 3),
        (" ".join(WORDS), " ".join(WORDS[:12]), 0),
        # Chinese is cut into characters, 30 to a run
        (CHINESE, f"前文，{CHINESE[3:20]}、{CHINESE[20:33]}。后文", 1 / (len(CHINESE) - 29)),
        # what is shorter must stand there whole
        (
            "What is 7 times 8 if all is done well?",
            "He asked: what is 7 times 8 if all is done well, and left.",
            1,
        ),
        (
            "What is 7 times 9 if all is done well?",
            "He asked: what is 7 times 8 if all is done well, and left.",
            0,
        ),
    ],
)
def test_share_of_runs_by_hand(tmp_path: Path, question: str, text: str, share: float) -> None:
    found = report(tmp_path, {"t": [question]}, ["no", text, "other"])["tasks"]["t"]["overlap"]
    assert found == ({"a": pytest.approx(share, abs=1e-4)} if share else {})


def test_two_tasks_with_the_same_ids(tmp_path: Path) -> None:
    seen, other = " ".join(WORDS), " ".join(reversed(WORDS))
    result = report(tmp_path, {"first": [seen, other], "second": [other, other]}, [seen, "no"])
    assert (result["threshold"], result["words"], result["characters"]) == (0.5, 13, 30)
    assert result["tasks"]["first"]["overlap"] == {"a": 1.0}
    assert result["tasks"]["first"]["clean"] == {"n": 1, "correct": 0, "accuracy": 0.0, "stderr": None}
    assert result["tasks"]["second"]["overlap"] == {}


def test_scores_with_and_without() -> None:
    rows = [{"id": name, "correct": name in "abc"} for name in "abcdef"]
    shares = dict(zip("abcdef", (1, 0.5, 0, 0, 0, 0.25), strict=True))
    scores = scores_without(rows, shares, 0.5)
    assert (scores["all"]["n"], scores["all"]["correct"]) == (6, 3)
    assert (scores["clean"]["n"], scores["clean"]["accuracy"]) == (4, 0.25)
    assert (scores["overlapping"]["n"], scores["overlapping"]["accuracy"]) == (2, 1.0)
    with pytest.raises(EvaluationError, match="item 'f'"):
        scores_without(rows, {name: shares[name] for name in "abcde"}, 0.5)


def test_other_task_files_and_bad_documents_are_named(tmp_path: Path) -> None:
    report(tmp_path, {"t": [" ".join(WORDS)]}, ["text"])
    evaluation, files = tmp_path / "evaluation", {"t": tmp_path / "t.jsonl"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no documents here"):
        overlap_report(evaluation, files, [tmp_path / "empty"], 0.5)
    bad = write_lines(tmp_path / "x.jsonl", [{"text": "a"}, {"texts": "b"}])
    with pytest.raises(DataError, match=r"x\.jsonl:2: no JSON object with 'text'"):
        overlap_report(evaluation, files, [bad], 0.5)
    write_lines(files["t"], [{"id": "a", "question": "another"}])
    with pytest.raises(EvaluationError, match="not the file that task 't'"):
        overlap_report(evaluation, files, [bad], 0.5)
