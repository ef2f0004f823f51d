"""What k answers to each item say: average, pass@k, majority, with errors clustered by item."""

from collections.abc import Sequence
from typing import Any

from megatron_mathcpt.answers import grade
from megatron_mathcpt.statistics import mean_and_standard_error, pass_at_k


def majority(answers: Sequence[str], kind: str) -> str:
    """The answer that most of `answers` are equal to; the first of those with the same count, '' if none."""
    groups: list[list[str]] = []
    for answer in filter(None, answers):
        for group in groups:
            if group[0] == answer or grade(group[0], answer, kind).equal:
                group.append(answer)
                break
        else:
            groups.append([answer])
    return max(groups, key=len)[0] if groups else ""


def sample_scores(outcomes: Sequence[Sequence[bool]], majority_right: Sequence[bool]) -> dict[str, Any]:
    """Scores of k answers for each item, as {name: {"value", "stderr"}}.

    `avg@k` is the mean accuracy, `pass@j` (j = 1, 2, 4, ..., k) the unbiased chance that one of j is right,
    `maj@k` the share of items whose most frequent answer is.
    """
    k = len(outcomes[0])
    scores = {f"avg@{k}": [sum(item) / k for item in outcomes]}
    sizes = [2**power for power in range(k.bit_length()) if 2**power < k]
    for size in [*sizes, k]:
        scores[f"pass@{size}"] = [pass_at_k(k, sum(item), size) for item in outcomes]
    scores[f"maj@{k}"] = [float(right) for right in majority_right]
    found = {name: mean_and_standard_error(values) for name, values in scores.items()}
    return {name: {"value": value, "stderr": error} for name, (value, error) in found.items()}
