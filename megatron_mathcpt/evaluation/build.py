"""lm-eval task objects for item files that are named on the command line."""

from pathlib import Path
from typing import Any

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.evaluation import hooks
from megatron_mathcpt.formats.benchmark import Item


def build_tasks(
    items: dict[str, tuple[Item, ...]], files: dict[str, Path], config: EvaluationConfig
) -> dict[str, Any]:
    """lm-eval's task dictionary: one `generate_until` task for each name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    specs = [_spec(name, rows, files[name], config) for name, rows in items.items()]
    loaded: dict[str, Any] = manager.load(specs)
    return loaded


def _spec(name: str, items: tuple[Item, ...], path: Path, config: EvaluationConfig) -> dict[str, Any]:
    shots = config.shots.get(name, 0)
    metrics = [("accuracy", True), ("ungraded", False)]
    return {
        "task": name,
        "custom_dataset": lambda **_: hooks.rows(items, path, shots),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": hooks.prompt,
        "doc_to_target": "{{answer}}",
        "process_results": hooks.score,
        "num_fewshot": 0,
        "repeats": config.samples,
        "filter_list": [
            {"name": "all", "filter": [{"function": "take_first_k", "k": config.samples}]},
        ],
        "generation_kwargs": {"until": hooks.STOP, **config.generation()},
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": better}
            for metric, better in metrics
        ],
        "metadata": {"version": 1, "num_fewshot": shots},
    }
