"""Benchmark files: what is read, and what is refused with its file and line."""

import hashlib
import json
from pathlib import Path

import pytest

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.benchmark import Item, choose_sets, load_items, spread

GOOD = {"id": "1", "question": "1+1?", "answer": "2", "type": "number", "lang": "en"}


def lines(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    known = {"solution": "1+1=2", "choices": ("1", "2"), "answer_text": "2", "stage": "primary", "steps": 1}
    items = tuple(Item.model_validate(row) for row in (GOOD | known, GOOD | {"id": "2", "lang": "zh"}))
    path.write_bytes(lines(*(item.model_dump() for item in items)))
    found = load_items(path)
    assert (found.path, found.items) == (path, items)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": no items"),
        (b"\xef\xbb\xbf{}", ":1: starts with a byte-order mark"),
        (b"\xff\xfe", ":1: not valid UTF-8 at byte 0"),
        (lines(GOOD) + b"{", ":2: not JSON .*column 2"),
        (lines(GOOD) + b"[1]", ":2: expected a JSON object, found list"),
        (lines(GOOD) + b'{"id":' + b"[" * 2000, ":2: not JSON"),
        (lines(GOOD) + b'{"id":' + b"[" * 900 + b"]" * 900 + b"}", ":2: JSON nested more than 64"),
        (lines(GOOD, GOOD | {"lang": None}), ":2: field 'lang'"),
        (lines(GOOD, GOOD | {"answer": " "}), ":2: question and answer must not be blank"),
        (lines(GOOD, GOOD), ":2: id '1' appears twice"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match=rf"x\.jsonl{message}"):
        load_items(path)


def test_missing_set_lists_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(EvaluationError, match="set 'gsm9k': unknown; known are gsm8k, math"):
        choose_sets(str(tmp_path), "gsm9k")
    with pytest.raises(EvaluationError, match=r"math.test\.jsonl: no such file.*zhongkao_public"):
        choose_sets(str(tmp_path), "")


def test_a_prompt_has_the_choices_and_a_limit_is_spread_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    choice = GOOD | {"type": "choice", "answer": "B", "choices": ["1", "2"]}
    path.write_bytes(lines(*(choice | {"id": str(n)} for n in range(10))))
    items = load_items(path).items
    assert items[0].prompt() == "Question: 1+1?\nA. 1\nB. 2\nSolution:"
    assert [item.id for item in spread(items, 4)] == ["0", "2", "5", "7"]
    assert spread(items, 99) == spread(items, None) == items


def test_local_sets_are_read(benchmarks_dir: Path) -> None:
    paths = choose_sets(str(benchmarks_dir), "")
    found = {name: len(load_items(path).items) for name, path in paths.items()}
    assert found == {"gsm8k": 660, "math": 2496, "gaokao_public": 92, "zhongkao_public": 244}
