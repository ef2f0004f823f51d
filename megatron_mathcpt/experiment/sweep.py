"""Score every checkpoint of a run on the same items, and compare each with the first.

The sweep's folder is a folder of results with one run per checkpoint: a killed sweep resumes with the next
checkpoint, later checkpoints are added, and a report can be written on it.
"""

import json
from pathlib import Path

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.run_folder import checkpoint_counts, checkpoint_manifest, checkpoint_paths
from megatron_mathcpt.log import is_first_process
from megatron_mathcpt.report.comparison import compare_runs
from megatron_mathcpt.report.figures import line_plot, points, tokens
from megatron_mathcpt.report.page import curve_svg
from megatron_mathcpt.report.read import load_runs


def sweep(
    run: Path, files: dict[str, Path], config: EvaluationConfig, out: Path
) -> tuple[list[tuple[str, ...]], list[str]] | None:
    """Evaluate the checkpoints of `run`, oldest first, each into `out`; write `sweep.json` and `sweep.svg`.

    Returns one row of strings per checkpoint (name, trained tokens, score on each task), and each pooled
    comparison with the first as a sentence: the report's tests, on the first answer to each item. Only the
    first process reads and writes; the others return None. Raises `EvaluationError` for a run without any.
    """
    paths = {path.name: path for path in reversed(checkpoint_paths(run))}  # newest first before reversal
    if not paths:
        raise EvaluationError(f"{run}: has no checkpoint in checkpoints/; --sweep takes the folder of a run")
    if is_first_process():
        claim_folder(out, "sweep")
    for name, path in paths.items():
        evaluate(path, files, config, out / name / "evaluation")
    if not is_first_process():
        return None
    seen = {
        name: checkpoint_counts(checkpoint_manifest(path)).consumed_tokens for name, path in paths.items()
    }
    first, *later = paths
    runs = load_runs(out, list(paths))
    compared = compare_runs(runs, [(name, first) for name in later])
    scores = {run.name: {task: score.headline for task, score in run.scores.items()} for run in runs}
    checkpoints, rows = [], list[tuple[str, ...]]()
    for name, of_tasks in scores.items():
        shown = {task: score.model_dump() for task, score in of_tasks.items()}
        checkpoints.append({"name": name, "consumed_tokens": seen[name], "tasks": shown})
        asked = (of_tasks[task] for task in config.tasks)
        cells = (f"{points(score.value)} ± {points(score.stderr)}" for score in asked)
        rows.append((name, tokens(seen[name]), *cells))
    result = {"checkpoints": checkpoints, "comparisons": [row.as_json() for row in compared]}
    write_atomically(out / "sweep.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
    curves = [
        (task, index, [(float(seen[name]), 100 * scores[name][task].value) for name in paths])
        for index, task in enumerate(scores[first])
    ]
    if plot := line_plot("accuracy in percent", curves, from_zero=False):
        write_atomically(out / "sweep.svg", curve_svg(plot).encode())
    return rows, [row.sentence for row in compared[: len(later)]]
