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
from megatron_mathcpt.log import read_json_lines
from megatron_mathcpt.manifest import FILE_NAME, write_atomically
from megatron_mathcpt.statistics import compare_paired, holm, minimum_detectable_difference

CHECKPOINTS = "step_*"


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

    The p-values of a task are adjusted by Holm for the number of models compared.
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
        heights, errors = ([100 * score[key] for score in found] for key in ("accuracy", "stderr"))
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
    outcomes = {name: _outcomes(out / name / f"samples_{task}.jsonl") for name in names}
    base = outcomes[names[0]]
    found = [compare_paired(list(base.values()), list(outcomes[name].values())) for name in names[1:]]
    adjusted = holm([comparison.p_value for comparison in found])
    return [
        {
            "model": name,
            "difference": comparison.difference,
            "interval_95": [comparison.low, comparison.high],
            "p_value": comparison.p_value,
            "p_holm": p_value,
            "verdict": comparison.verdict() if p_value < 0.05 else "not distinguishable",
            "minimum_detectable_difference": minimum_detectable_difference(
                comparison.items, (comparison.only_first + comparison.only_second) / comparison.items
            ),
        }
        for name, comparison, p_value in zip(names[1:], found, adjusted, strict=True)
    ]


def _outcomes(path: Path) -> dict[str, bool]:
    """Whether each item was answered right, by its first sample."""
    return {row["id"]: row["correct"] for row in read_json_lines(path) if row.get("sample", 0) == 0}


def _name(path: Path) -> str:
    folder = path.resolve()
    return (
        f"{folder.parent.name}_{folder.name}"
        if folder.name in ("hf",) or folder.match(CHECKPOINTS)
        else folder.name
    )
