"""What our lm-eval tasks call: data, prompt, score. The YAML files of `tasks/` name these functions.

lm-eval's own index of tasks, which takes 13 s to load, is never touched.
"""

import os
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.judge import judge
from megatron_mathcpt.formats.benchmark import (
    SAMPLES,
    SETS,
    Item,
    check_examples,
    examples_for,
    find_sets,
    load_items,
    spread,
)
from megatron_mathcpt.records import Problem, cpt_text

TASKS_FOLDER = Path(__file__).parent / "tasks"
# What starts the next question or ends the answer; the end-of-sequence token stops a model anyway.
STOP = ["\n\n", "\nQuestion:", "\n问题："]


def dataset(
    benchmark_set: str,
    shots: int = 0,
    benchmarks: str | None = None,
    items_per_set: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Rows of one of `SETS` for lm-eval.

    `benchmarks` (from `--metadata`) or MATHCPT_BENCHMARKS names the folder; `samples` is the small sets of
    this package. Raises `EvaluationError` when a file is missing or wrong.
    """
    root = benchmarks or os.environ.get("MATHCPT_BENCHMARKS")
    if not root:
        raise EvaluationError(
            "MATHCPT_BENCHMARKS is not set: name the folder of benchmark sets, or `samples` for the small "
            "ones of this package"
        )
    folder = SAMPLES if root == "samples" else Path(root)
    path = find_sets(folder, {benchmark_set: SETS[benchmark_set]})[benchmark_set]
    return rows(spread(load_items(path).items, items_per_set), path, shots)


def rows(items: tuple[Item, ...], path: Path, shots: int) -> dict[str, Any]:
    """`items` of the file `path` as lm-eval's dataset, each with its `shots` worked examples."""
    from datasets import Dataset

    languages = {item.lang for item in items}
    prefixes = {language: _prefix(examples_for(path, language, shots)) for language in languages}
    check_examples(items, path, shots)
    return {
        "test": Dataset.from_list([item.model_dump() | {"prefix": prefixes[item.lang]} for item in items])
    }


def prompt(doc: dict[str, Any]) -> str:
    """Prompt of one row: worked examples, then the question."""
    return str(doc["prefix"]) + Item.model_validate(doc).prompt()


def score(doc: dict[str, Any], outputs: list[Any]) -> dict[str, float]:
    """lm-eval's metrics of one item: its share of right samples, and of those the grader could not tell."""
    found = outputs[0] if isinstance(outputs[0], list) else outputs
    verdicts = [judge(Item.model_validate(doc), output).verdict.equal for output in found]
    return {
        "accuracy": sum(equal is True for equal in verdicts) / len(verdicts),
        "ungraded": sum(equal is None for equal in verdicts) / len(verdicts),
    }


def _prefix(examples: tuple[Problem, ...]) -> str:
    return "".join(cpt_text(example) + "\n\n" for example in examples)
