"""An evaluation's folder is read as written, and its lines have a fixed form."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.evaluation_folder import (
    KIND,
    RESPONSES,
    Response,
    Results,
    Sample,
    TaskScore,
    load_first_answers,
    load_results,
    write_evaluation,
)
from megatron_mathcpt.formats.files import JsonLines, read_rows
from megatron_mathcpt.formats.manifest import load_manifest

SAID: Any = {"verdict": "wrong", "reason": "value", "extracted": "七", "method": "box", "output": "七"}
SAID |= {"gold": "7", "question": "3+4?"}
ROWS = [
    Sample(id="a", sample=0, correct=True, **SAID),
    Sample(id="a", sample=1, correct=False, **SAID),
    Sample(id="b", sample=0, correct=False, steps=2, **SAID),
]
K_SCORES = {"avg@2": {"value": 0.25, "stderr": 0.25}}


def _score(n: int, correct: int, **more: Any) -> TaskScore:
    return TaskScore(n=n, correct=correct, accuracy=correct / n, stderr=math.nan, data_sha256="0", **more)


def _write(folder: Path, score: TaskScore) -> Results:
    results = Results(model="m", model_fingerprint="f", tasks={"sums": score})
    write_evaluation(folder, results, {"sums": ROWS}, inputs={"model": "f"}, config={"seed": 0})
    return results


def test_what_was_written_is_read(tmp_path: Path) -> None:
    place = {
        "batch": "0",
        "place": 1,
        "task": "sums",
        "id": "a",
        "prompt": "3+4?",
        "tokens": 5,
        "seconds": 0.5,
    }
    answers = {name: SAID[name] for name in ("verdict", "reason", "extracted", "method", "output")}
    response = Response.model_validate(place | answers | {"correct": False})
    responses = JsonLines(tmp_path / RESPONSES)
    responses.write(response.model_dump())
    responses.close()
    assert read_rows(tmp_path / RESPONSES, Response) == [response]
    results = _write(tmp_path, _score(2, 1, samples=K_SCORES))
    found = load_results(tmp_path)
    assert json.dumps(found.as_json()) == json.dumps(results.as_json())  # NaN is not equal to itself
    assert load_first_answers(tmp_path, "sums", found.tasks["sums"]) == [ROWS[0], ROWS[2]]
    assert load_manifest(tmp_path, KIND).counts == {"accuracy": {"sums": 0.5}}


def test_a_line_names_what_is_known_in_a_fixed_order(tmp_path: Path) -> None:
    _write(tmp_path, _score(2, 1))
    assert (tmp_path / "samples_sums.jsonl").read_text(encoding="utf-8").splitlines()[2] == (
        '{"id": "b", "correct": false, "verdict": "wrong", "reason": "value", '
        '"extracted": "七", "method": "box", "output": "七", '
        '"sample": 0, "steps": 2, "gold": "7", "question": "3+4?"}'
    )
    assert "samples" not in json.loads((tmp_path / "results.json").read_text())["tasks"]["sums"]


@pytest.mark.parametrize("score", [_score(2, 2), _score(3, 1)])
def test_samples_that_are_not_those_of_the_score_are_refused(tmp_path: Path, score: TaskScore) -> None:
    _write(tmp_path, score)
    with pytest.raises(EvaluationError, match=rf"samples_sums\.jsonl: 1 of 2 .* says {score.correct} of"):
        load_first_answers(tmp_path, "sums", score)
