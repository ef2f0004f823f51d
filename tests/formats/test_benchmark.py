"""Benchmark files: what is read, and what is refused with its file and line."""

import json
from pathlib import Path

import pytest

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.benchmark import choose_sets, load_items, spread

GOOD = {"id": "1", "question": "1+1?", "answer": "2", "type": "number", "lang": "en"}


def _without(field: str) -> str:
    return json.dumps({key: value for key, value in GOOD.items() if key != field})


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        ("{", r"x\.jsonl:2: Invalid JSON: .* column 1"),
        ("[1]", r"x\.jsonl:2: Input should be an object"),
        (_without("question"), r"x\.jsonl:2: field 'question': Field required"),
        (_without("lang"), r"x\.jsonl:2: field 'lang'"),
        (json.dumps(GOOD | {"id": "2", "answer": ""}), r"x\.jsonl:2: field 'answer'"),
        (json.dumps(GOOD | {"id": "2", "answer": " "}), r"x\.jsonl:2: question and answer must not be blank"),
        (json.dumps(GOOD | {"id": "2", "type": "essay"}), r"x\.jsonl:2: field 'type'"),
        (json.dumps(GOOD), r"x\.jsonl:2: id '1' is there twice"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, second_line: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + second_line + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=message):
        load_items(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no item"),
        (b"\xef\xbb\xbf{}", ":1: starts with a byte-order mark"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match=message):
        load_items(path)


def test_missing_set_lists_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(GOOD), encoding="utf-8")
    with pytest.raises(EvaluationError, match="set 'gsm9k': unknown; known are gsm8k, math"):
        choose_sets(str(tmp_path), "gsm9k")
    with pytest.raises(EvaluationError, match=r"math.test\.jsonl: no such file.*zhongkao_public"):
        choose_sets(str(tmp_path), "")


def test_choices_stand_in_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    row = GOOD | {"type": "choice", "answer": "B", "choices": ["1", "2"]}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert load_items(path).items[0].prompt() == "Question: 1+1?\nA. 1\nB. 2\nSolution:"


def test_limit_is_spread_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(GOOD | {"id": str(n)}) for n in range(10)), encoding="utf-8")
    items = load_items(path).items
    assert [item.id for item in spread(items, 4)] == ["0", "2", "5", "7"]
    assert spread(items, 99) == spread(items, None) == items


def test_local_sets_are_read(benchmarks_dir: Path) -> None:
    paths = choose_sets(str(benchmarks_dir), "")
    found = {name: len(load_items(path).items) for name, path in paths.items()}
    assert found == {"gsm8k": 660, "math": 2496, "gaokao_public": 92, "zhongkao_public": 244}
