"""Score every checkpoint of a run, or several models, on the same items; each against the first, paired.

Every model has an evaluation folder of its own below the sweep's, so a sweep that was killed goes on with the
next model, and models that come later are added.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.run import evaluate
from megatron_mathcpt.formats.files import read_json_lines, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME
from megatron_mathcpt.statistics import (
    compare_paired,
    holm,
    mean_and_standard_error,
    minimum_detectable_difference,
    paired_bootstrap,
)

CHECKPOINTS = "step_*"
_DETECTED = 1.959964 + 0.841621  # standard errors: found with power 0.8 by a two-sided test at 0.05


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Models by name, in order: each path itself, or all complete checkpoints of a run folder, oldest first.

    Raises `EvaluationError` when a run has none, or two models have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        checkpoints = sorted((path / "checkpoints").glob(CHECKPOINTS))
        if (path / "checkpoints").is_dir() and not checkpoints:
            raise EvaluationError(f"{path}: no checkpoint in checkpoints/; train it first")
        for model in checkpoints or [path]:
            name = f"{path.resolve().name}_{model.name}" if checkpoints else _name(path)
            if name in found:
                raise EvaluationError(f"{path}: a second model of the name '{name}'; rename one folder")
            found[name] = model
    return found


def sweep(
    models: dict[str, Path], files: dict[str, Path], config: EvaluationConfig, out: Path
) -> dict[str, Any]:
    """Scores of every model and paired comparisons with the first; written to `sweep.json`.

    One answer an item: exact McNemar, the p-values of a task adjusted by Holm for the number of models
    compared. Several: a paired bootstrap over items of each item's mean, its interval widened for that number
    (Bonferroni).
    """
    rows = []
    for name, model in models.items():
        results = evaluate(model, files, config, out / name)
        rows.append({"model": name, "consumed_tokens": consumed_tokens(model), "tasks": results["tasks"]})
    result = {
        "models": rows,
        "comparisons": {task: _against_first(list(models), task, out) for task in config.tasks},
    }
    write_atomically(out / "sweep.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
    return result


def consumed_tokens(model: Path) -> int | None:
    """Tokens a checkpoint was trained on; None for other models."""
    manifest = model / FILE_NAME
    if not manifest.is_file():
        return None
    tokens = json.loads(manifest.read_bytes())["counts"].get("consumed_tokens")
    return None if tokens is None else int(tokens)


def headline(score: dict[str, Any]) -> tuple[float, float]:
    """Accuracy of a task and its standard error: of the one answer, or the average over k of them."""
    average = next(
        (found for name, found in score.get("samples", {}).items() if name.startswith("avg@")), None
    )
    return (average["value"], average["stderr"]) if average else (score["accuracy"], score["stderr"])


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy in % with one standard error against trained tokens (or the models' order), a line a task."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = result["models"]
    tokens = [row["consumed_tokens"] for row in rows]
    known = all(count is not None for count in tokens)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for task in rows[0]["tasks"]:
        found = [row["tasks"][task] for row in rows]
        heights, errors = (
            [100 * value for value in part] for part in zip(*map(headline, found), strict=True)
        )
        axes.errorbar(
            tokens if known else range(len(rows)), heights, yerr=errors, marker="o", capsize=3, label=task
        )
    if not known:
        axes.set_xticks(range(len(rows)), [row["model"] for row in rows], rotation=30, ha="right")
    axes.set_xlabel("trained tokens" if known else "model")
    axes.set_ylabel("accuracy in %, ± standard error")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _against_first(names: list[str], task: str, out: Path) -> list[dict[str, Any]]:
    scores = [_item_scores(out / name / f"samples_{task}.jsonl") for name in names]
    base, others = list(scores[0].values()), [[score[item] for item in scores[0]] for score in scores[1:]]
    single = all(len(answers) == 1 for answers in base)
    compare = _by_mcnemar if single else _by_bootstrap
    return [{"model": name, **found} for name, found in zip(names[1:], compare(base, others), strict=True)]


def _by_mcnemar(base: list[list[bool]], others: list[list[list[bool]]]) -> list[dict[str, Any]]:
    first = [answer for (answer,) in base]
    found = [compare_paired(first, [answer for (answer,) in other]) for other in others]
    return [
        {
            "difference": comparison.difference,
            "interval_95": [comparison.low, comparison.high],
            "p_value": comparison.p_value,
            "p_holm": p_value,
            "verdict": comparison.verdict() if p_value < 0.05 else "not distinguishable",
            "minimum_detectable_difference": minimum_detectable_difference(
                comparison.items, (comparison.only_first + comparison.only_second) / comparison.items
            ),
        }
        for comparison, p_value in zip(found, holm([comparison.p_value for comparison in found]), strict=True)
    ]


def _by_bootstrap(base: list[list[bool]], others: list[list[list[bool]]]) -> list[dict[str, Any]]:
    means = [sum(answers) / len(answers) for answers in base]
    rows = []
    for other in others:
        second = [sum(answers) / len(answers) for answers in other]
        difference, low, high = paired_bootstrap(means, second)
        _, wide_low, wide_high = paired_bootstrap(means, second, confidence=1 - 0.05 / len(others))
        _, error = mean_and_standard_error([b - a for a, b in zip(means, second, strict=True)])
        apart = "better" if wide_low > 0 else "worse" if wide_high < 0 else "not distinguishable"
        rows.append(
            {
                "difference": difference,
                "interval_95": [low, high],
                "interval_for_all": [wide_low, wide_high],
                "verdict": apart,
                "minimum_detectable_difference": _DETECTED * error,
            }
        )
    return rows


def _item_scores(path: Path) -> dict[str, list[bool]]:
    """Whether each answer to each item is right, by item, in the order of the samples."""
    found: dict[str, list[bool]] = {}
    for row in read_json_lines(path):
        found.setdefault(row["id"], []).append(row["correct"])
    return found


def _name(path: Path) -> str:
    folder = path.resolve()
    return (
        f"{folder.parent.name}_{folder.name}"
        if folder.name in ("hf",) or folder.match(CHECKPOINTS)
        else folder.name
    )
