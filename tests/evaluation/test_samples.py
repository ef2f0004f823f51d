"""Scores of k answers, by hand; the study's aggregates."""

import pytest

from megatron_mathcpt.evaluation.tasks import aggregates, majority
from megatron_mathcpt.formats.evaluation_folder import TaskScore


def test_majority_counts_equal_answers_together() -> None:
    assert majority(["0.5", "2", "1/2", "\\frac{1}{2}", "2"], "latex") == "0.5"
    assert majority(["3", "", "4"], "number") == "3"
    assert majority(["", ""], "number") == ""


def _task(accuracy: float) -> TaskScore:
    return TaskScore(n=100, correct=round(100 * accuracy), accuracy=accuracy, stderr=0.02, data_sha256="")


def test_higher_form_and_mean_of_four() -> None:
    tasks = {
        "gsm8k": _task(0.2),
        "gsm8k_few_shot": _task(0.3),
        "math": _task(0.1),
        "math_few_shot": _task(0.05),
        "gaokao_public": _task(0.4),
        "zhongkao_public": _task(0.5),
    }
    found = aggregates(tasks)
    assert found["higher_of_forms"]["gsm8k"] == {
        "form": "gsm8k_few_shot",
        "accuracy": 0.3,
        "stderr": 0.02,
        "n": 100,
    }
    assert found["higher_of_forms"]["math"]["form"] == "math"
    assert found["mean_of_four"]["accuracy"] == pytest.approx((0.3 + 0.1 + 0.4 + 0.5) / 4)
    assert found["mean_of_four"]["stderr"] == pytest.approx(0.02 / 2)


def test_no_mean_without_all_four() -> None:
    assert aggregates({"gsm8k": _task(0.2), "heldout_en": _task(0.9)}) == {}
