"""Score every checkpoint of a run on the same items, and compare each with the first.

The sweep's folder is a folder of results, one run a checkpoint: a sweep that was killed goes on with the next
one, later checkpoints are added, and a report can be written on it.
"""

import json
from pathlib import Path

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.run_folder import checkpoint_counts, checkpoint_paths, load_sealed
from megatron_mathcpt.log import is_first_process
from megatron_mathcpt.report.comparison import Comparison, compare_runs
from megatron_mathcpt.report.figures import line_plot, points, tokens
from megatron_mathcpt.report.page import curve_svg
from megatron_mathcpt.report.read import Run, load_runs


def sweep(
    run: Path, files: dict[str, Path], config: EvaluationConfig, out: Path
) -> tuple[list[tuple[str, ...]], list[str]] | None:
    """Evaluate the checkpoints of `run`, oldest first, each into `out`; write `sweep.json` and `sweep.svg`.

    Gives a row of text a checkpoint (name, trained tokens, score on each task), and the pooled comparisons
    with the first in words: of the first answers to each item, by the report's tests. None in all processes
    but the first, which alone writes and reads. Raises `EvaluationError` when the run has no checkpoint.
    """
    paths = {path.name: path for path in reversed(checkpoint_paths(run))}
    if not paths:
        raise EvaluationError(f"{run}: no checkpoint in checkpoints/; --sweep takes the folder of a run")
    for name, path in paths.items():
        evaluate(path, files, config, out / name / "evaluation")
    if not is_first_process():
        return None
    seen = {name: checkpoint_counts(load_sealed(path)).consumed_tokens for name, path in paths.items()}
    names = list(paths)
    scored = load_runs(out, names)
    compared = compare_runs(scored, [(name, names[0]) for name in names[1:]])
    _write(out, scored, seen, compared)
    rows = [
        (found.name, tokens(seen[found.name]), *(_cell(found, task) for task in config.tasks))
        for found in scored
    ]
    pooled = [row.sentence for row in compared[: len(names) - 1]]
    return rows, pooled


def _cell(run: Run, task: str) -> str:
    score = run.scores[task].headline
    return f"{points(score.value)} ± {points(score.stderr)}"


def _write(out: Path, runs: tuple[Run, ...], seen: dict[str, int], compared: tuple[Comparison, ...]) -> None:
    result = {
        "checkpoints": [
            {
                "name": run.name,
                "consumed_tokens": seen[run.name],
                "tasks": {task: score.headline.model_dump() for task, score in run.scores.items()},
            }
            for run in runs
        ],
        "comparisons": [row.as_json() for row in compared],
    }
    write_atomically(out / "sweep.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
    curves = [
        (task, index, [(float(seen[run.name]), 100 * run.scores[task].headline.value) for run in runs])
        for index, task in enumerate(runs[0].scores)
    ]
    plot = line_plot("accuracy in percent", curves, from_zero=False)
    if plot:
        write_atomically(out / "sweep.svg", curve_svg(plot).encode())
