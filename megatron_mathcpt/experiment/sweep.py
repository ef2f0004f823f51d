"""Score every checkpoint of a run on the same items, and report on them as on runs.

The sweep's folder is a folder of results with one run per checkpoint: a killed sweep resumes with the next
checkpoint, and later checkpoints are added.
"""

from pathlib import Path

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.formats.evaluation_folder import TaskScore, load_results
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.run_folder import checkpoint_counts, checkpoint_manifest, checkpoint_paths
from megatron_mathcpt.log import is_first_process
from megatron_mathcpt.report.figures import line_plot
from megatron_mathcpt.report.page import build_report, curve_svg


def sweep(run: Path, files: dict[str, Path], config: EvaluationConfig, out: Path) -> None:
    """Evaluate the checkpoints of `run`, oldest first, each into `out`, and report on all against the first.

    The first process writes `report/`, and the scores against trained tokens as plots: `accuracy.svg` and
    `bits.svg`. Raises `EvaluationError` for a run without any.
    """
    paths = {path.name: path for path in reversed(checkpoint_paths(run))}  # newest first before reversal
    if not paths:
        raise EvaluationError(f"{run}: has no checkpoint in checkpoints/; --sweep takes the folder of a run")
    if is_first_process():
        claim_folder(out, "sweep")
    for name, path in paths.items():
        evaluate(path, files, config, out / name / "evaluation")
    if not is_first_process():
        return
    first, *later = paths
    build_report(out, out / "report", runs=list(paths), comparisons=[(name, first) for name in later])
    seen = {
        name: checkpoint_counts(checkpoint_manifest(path)).consumed_tokens for name, path in paths.items()
    }
    scores = {name: load_results(out / name / "evaluation").tasks for name in paths}
    for file, title in ("accuracy", "accuracy in percent"), ("bits", "bits per byte"):
        curves = []
        for index, task in enumerate(config.tasks):
            found = ((float(seen[name]), _value(file, tasks[task])) for name, tasks in scores.items())
            curves.append((task, index, [(x, y) for x, y in found if y is not None]))
        if plot := line_plot(title, curves, from_zero=False):
            write_atomically(out / f"{file}.svg", curve_svg(plot).encode())


def _value(measure: str, score: TaskScore) -> float | None:
    if measure == "accuracy":
        return 100 * score.headline.value
    return score.bits_per_byte.value if score.bits_per_byte else None
