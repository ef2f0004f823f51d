"""The study's aggregates: the higher of zero-shot and few-shot per set, and the plain mean of four sets."""

import math
from typing import Any

from megatron_mathcpt.formats.benchmark import STUDY_SETS

FEW_SHOT = "_few_shot"


def aggregates(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`higher_of_forms` for each set scored in both forms, `mean_of_four` where all four sets were scored.

    Taking the higher of two noisy scores is biased upwards; both forms stay in the results beside it.
    """
    forms = {name: name + FEW_SHOT for name in tasks if name + FEW_SHOT in tasks}
    higher: dict[str, dict[str, Any]] = {
        name: {"form": max((name, few), key=lambda form: tasks[form]["accuracy"])}
        for name, few in forms.items()
    }
    for found in higher.values():
        found |= {key: tasks[found["form"]][key] for key in ("accuracy", "stderr", "n")}
    best = {name: higher.get(name, tasks.get(name) or tasks.get(name + FEW_SHOT)) for name in STUDY_SETS}
    whole = {name: found for name, found in best.items() if found}
    result: dict[str, Any] = {"higher_of_forms": higher} if higher else {}
    if len(whole) == len(STUDY_SETS):
        result["mean_of_four"] = {
            "accuracy": sum(found["accuracy"] for found in whole.values()) / len(whole),
            "stderr": math.sqrt(sum(found["stderr"] ** 2 for found in whole.values())) / len(whole),
        }
    return result
