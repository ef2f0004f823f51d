"""Our items as lm-eval tasks.

lm-eval calls the functions here by what it read in a task's config; the built-in index, which takes
13 s to load, is never touched.
"""

from typing import Any

from megatron_mathcpt.evaluation.items import Item
from megatron_mathcpt.evaluation.judge import judge

# What starts the next question or ends the answer; the end-of-sequence token stops a model anyway.
STOP = ["\n\n", "\nQuestion:", "\n问题："]


def build_tasks(items: dict[str, tuple[Item, ...]], max_new_tokens: int) -> dict[str, Any]:
    """lm-eval's task dictionary: one zero-shot, greedy `generate_until` task for each name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    specs = [_spec(name, rows, max_new_tokens) for name, rows in items.items()]
    loaded: dict[str, Any] = manager.load(specs)
    return loaded


def _spec(name: str, items: tuple[Item, ...], max_new_tokens: int) -> dict[str, Any]:
    return {
        "task": name,
        "custom_dataset": lambda **_: _dataset(items),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": prompt,
        "doc_to_target": "{{answer}}",
        "process_results": score,
        "num_fewshot": 0,
        "generation_kwargs": {"until": STOP, "max_gen_toks": max_new_tokens, "do_sample": False},
        "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def prompt(doc: dict[str, Any]) -> str:
    """Prompt of one row of the dataset."""
    return Item.model_validate(doc).prompt()


def score(doc: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """lm-eval's metrics of one item: whether it is right, and whether the grader could not tell."""
    verdict = judge(Item.model_validate(doc), outputs[0]).verdict
    return {"accuracy": float(verdict.equal is True), "ungraded": float(verdict.equal is None)}


def _dataset(items: tuple[Item, ...]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list([item.model_dump() for item in items])}
