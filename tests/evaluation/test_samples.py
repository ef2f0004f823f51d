"""Scores of k answers, by hand; the study's aggregates."""

import pytest

from megatron_mathcpt.evaluation.aggregate import aggregates
from megatron_mathcpt.evaluation.samples import majority, sample_scores


def test_majority_counts_equal_answers_together() -> None:
    assert majority(["0.5", "2", "1/2", "\\frac{1}{2}", "2"], "latex") == "0.5"
    assert majority(["3", "", "4"], "number") == "3"
    assert majority(["", ""], "number") == ""


def test_scores_by_hand() -> None:
    # Two items of four answers, 2 and 0 right: averages 0.5 and 0; pass@2 = 1 - C(2,2)/C(4,2) = 5/6 and 0.
    outcomes = [[True, False, True, False], [False] * 4]
    scores = sample_scores(outcomes, [True, False])
    assert list(scores) == ["avg@4", "pass@1", "pass@2", "pass@4", "maj@4"]
    values = {name: found["value"] for name, found in scores.items()}
    assert values == pytest.approx(
        {"avg@4": 0.25, "pass@1": 0.25, "pass@2": 5 / 12, "pass@4": 0.5, "maj@4": 0.5}
    )
    # Clustered by item: half the range of two numbers.
    assert scores["avg@4"]["stderr"] == pytest.approx(0.25)
    assert scores["pass@2"]["stderr"] == pytest.approx(5 / 12)


def _task(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "stderr": 0.02, "n": 100}


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
    assert found["higher_of_forms"]["gsm8k"] == {"form": "gsm8k_few_shot", **_task(0.3)}
    assert found["higher_of_forms"]["math"]["form"] == "math"
    assert found["mean_of_four"]["accuracy"] == pytest.approx((0.3 + 0.1 + 0.4 + 0.5) / 4)
    assert found["mean_of_four"]["stderr"] == pytest.approx(0.02 / 2)


def test_no_mean_without_all_four() -> None:
    assert aggregates({"gsm8k": _task(0.2), "heldout_en": _task(0.9)}) == {}
