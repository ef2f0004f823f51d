"""Score every checkpoint of a run on the same items, and compare each with the first.

The sweep's folder is a folder of results with one run per checkpoint: a killed sweep resumes with the next
checkpoint, later checkpoints are added, and a report can be written on it.
"""

import json
from pathlib import Path

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.formats.evaluation_folder import Results, SampleScore, load_results
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.run_folder import checkpoint_counts, checkpoint_manifest, checkpoint_paths
from megatron_mathcpt.log import is_first_process
from megatron_mathcpt.report.comparison import compare_runs
from megatron_mathcpt.report.figures import line_plot, points, tokens
from megatron_mathcpt.report.page import curve_svg
from megatron_mathcpt.report.read import load_runs

_BITS = "bits per byte: "


def sweep(
    run: Path, files: dict[str, Path], config: EvaluationConfig, out: Path
) -> tuple[list[str], list[tuple[str, ...]], list[str]] | None:
    """Evaluate the checkpoints of `run`, oldest first, each into `out`; write `sweep.json` and the plots.

    Returns headings, one row of strings per checkpoint (name, trained tokens, its scores), and each pooled
    comparison with the first as sentences, one for each measure: the report's tests, on the first answer to
    each item. Only the first process reads and writes; the others return None. Raises `EvaluationError` for
    a run without any.
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
    compared = compare_runs(load_runs(out, list(paths)), [(name, first) for name in later])
    scores = {name: _scores(load_results(out / name / "evaluation")) for name in paths}
    checkpoints, rows = [], list[tuple[str, ...]]()
    for name, found in scores.items():
        shown = {heading: score.model_dump() for heading, score in found.items()}
        checkpoints.append({"name": name, "consumed_tokens": seen[name], "tasks": shown})
        texts = {heading: "{:.3f}".format if heading.startswith(_BITS) else points for heading in found}
        cells = (f"{texts[name](score.value)} ± {texts[name](score.stderr)}" for name, score in found.items())
        rows.append((name, tokens(seen[name]), *cells))
    result = {"checkpoints": checkpoints, "comparisons": [row.as_json() for row in compared]}
    write_atomically(out / "sweep.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
    for file, title, unit in ("sweep", "accuracy in percent", 100), ("sweep_bits", "bits per byte", 1):
        asked = [name for name in scores[first] if name.startswith(_BITS) == (unit == 1)]
        curves = [
            (heading, index, [(float(seen[name]), unit * scores[name][heading].value) for name in paths])
            for index, heading in enumerate(asked)
        ]
        if plot := line_plot(title, curves, from_zero=False):
            write_atomically(out / f"{file}.svg", curve_svg(plot).encode())
    sentences = [sentence for row in compared[: len(later)] for sentence in row.sentences]
    return ["checkpoint", "trained tokens", *scores[first]], rows, sentences


def _scores(results: Results) -> dict[str, SampleScore]:
    """By heading: each task, the higher form of those in both, bits per byte where they were counted."""
    higher, tasks = results.aggregates.get("higher_of_forms", {}), results.tasks
    found = {task: score.headline for task, score in tasks.items()}
    for task, best in higher.items():
        found[f"higher of forms: {task}"] = SampleScore(value=best["accuracy"], stderr=best["stderr"])
    return found | {_BITS + task: bits for task, score in tasks.items() if (bits := score.bits_per_byte)}
