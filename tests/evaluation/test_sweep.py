"""Several models on the same items: scores, comparisons and plot."""

import json
from pathlib import Path

import pytest

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.sweep import _against_first, consumed_tokens, find_models, plot, sweep
from megatron_mathcpt.formats.files import read_json_lines
from tests.evaluation.conftest import QUESTIONS, make_model, write_lines


@pytest.mark.parametrize("backend", ["hf", "megatron"])
def test_two_models(model_folder: Path, tmp_path: Path, backend: str) -> None:
    models = find_models([model_folder, make_model(tmp_path / "other", seed=4)])
    files = {"questions": write_lines(tmp_path / "q.jsonl", [{"lang": "en", **row} for row in QUESTIONS])}
    config = EvaluationConfig(tasks=("questions",), max_new_tokens=6).model_copy(update={"backend": backend})
    result = sweep(models, files, config, tmp_path / "sweep")
    assert [row["model"] for row in result["models"]] == list(models)
    assert result == json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    (found,) = result["comparisons"]["questions"]
    rows = [read_json_lines(tmp_path / "sweep" / name / "samples_questions.jsonl") for name in models]
    right = [sum(row["correct"] for row in part) for part in rows]
    assert found["difference"] == pytest.approx((right[1] - right[0]) / 5)
    assert found["verdict"] == "not distinguishable"
    assert [row["output"] for row in rows[0]] != [row["output"] for row in rows[1]]
    plot(result, tmp_path / "sweep.svg")
    assert "questions" in (tmp_path / "sweep.svg").read_text()


def test_k_answers_are_compared_by_item(tmp_path: Path) -> None:
    # Items 0 to 7: the first model answers none, the second every one twice of two, the third the first once.
    for name, right in (("none", []), ("all", range(16)), ("one", [0])):
        rows = [{"id": f"q{n // 2}", "sample": n % 2, "correct": n in right, "output": ""} for n in range(16)]
        write_lines(tmp_path / name / "samples_sums.jsonl", rows)
    found = {row["model"]: row for row in _against_first(["none", "all", "one"], "sums", tmp_path)}
    assert (found["all"]["difference"], found["all"]["interval_for_all"]) == (1.0, [1.0, 1.0])
    assert found["one"]["difference"] == pytest.approx(0.5 / 8)
    assert [found[name]["verdict"] for name in ("all", "one")] == ["better", "not distinguishable"]
    # Means of an item differ by 0.5 once in eight: standard error 0.0625, times 2.8016.
    assert found["one"]["minimum_detectable_difference"] == pytest.approx(0.1751, abs=1e-4)


def test_checkpoints_of_a_run_come_oldest_first(tmp_path: Path) -> None:
    for step in (200, 100):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"counts": {"consumed_tokens": step * 10}}))
    found = find_models([tmp_path / "run"])
    assert list(found) == ["run_step_00000100", "run_step_00000200"]
    assert [consumed_tokens(path) for path in found.values()] == [1000, 2000]


def test_models_of_one_name_and_empty_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(EvaluationError, match="no checkpoint in checkpoints/"):
        find_models([tmp_path / "run"])
    with pytest.raises(EvaluationError, match="second model of the name 'm'"):
        find_models([tmp_path / "m", tmp_path / "m"])
