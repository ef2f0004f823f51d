"""A small results folder of a base and two runs whose report can be worked out by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.evaluation_folder import Results, Sample, TaskScore
from megatron_mathcpt.formats.manifest import Manifest, load_manifest, write_manifest
from megatron_mathcpt.formats.run_folder import RunCounts, SourceTokens
from megatron_mathcpt.report.page import build_report
from megatron_mathcpt.statistics import accuracy_standard_error
from tests.support.json_lines import write_json_lines

# Items that only base2 answers, only base1, both, none. One-sided 9:1 gives p = 2 (1 + 10) / 2^10 = 0.0215.
EN = {"only_second": 9, "only_first": 1, "both": 3, "neither": 7}
ZH = {"only_second": 3, "only_first": 3, "both": 2, "neither": 12}
BEGIN = "<|begin_of_text|>"  # of every document
POOLS = ("general", "math_corpus", "problem_solving")


def paired_outcomes(counts: Mapping[str, int]) -> tuple[list[bool], list[bool]]:
    """Whether the first and the second run answer each item, with these counts of the four kinds."""
    firsts, seconds = ("only_first", "both"), ("only_second", "both")
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    return [kind in firsts for kind in kinds], [kind in seconds for kind in kinds]


def write_run(root: Path, name: str, inputs: dict[str, str], steps: int = 40) -> Manifest:
    """Write a finished run: a training row a step (loss 4 - step/20), validation every tenth."""
    folder = root / name
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row = {"step": step, "consumed_samples": 8 * step, "consumed_tokens": 1000 * step}
        speed = {"tokens_per_second": 100.0 + step, "mfu": 0.3}
        norms = {"grad_norm": 1.0 * step, "learning_rate": 0.01 / step}
        rows.append(row | {"loss": 4 - step / 20} | norms | speed)
        if step % 10 == 0:
            rows.append(row | {"validation": {pool: 3.5 - step / 40 for pool in POOLS}})
    write_json_lines(folder / "metrics.jsonl", rows)
    (folder / "config.yaml").write_text(f"name: {name}\n", encoding="utf-8")
    general, mathematics = (
        SourceTokens(asked=30000, seen=29700, available=19800),
        SourceTokens(asked=10000, seen=10300),
    )
    counts = RunCounts(
        **{"step": steps, "steps": steps, "consumed_samples": 8 * steps, "consumed_tokens": 1000 * steps},
        tokens_by_source={"general": general, "math_corpus": mathematics},
        final_validation={pool: 2.5 for pool in POOLS},
        begin=BEGIN,
    )
    return write_manifest(folder, "run", inputs=inputs, counts=counts.model_dump(), config={})


def write_evaluation(
    root: Path,
    name: str,
    tasks: Mapping[str, Sequence[bool]],
    bits: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write `hf/` and `evaluation/` of a run that got these items right, with bits per byte of its tasks."""
    hf = root / name / "hf"
    hf.mkdir(parents=True)
    converted = write_manifest(hf, "hf", inputs={}, counts={"max_abs_logit_difference": 1.5e-6}, config={})
    folder = root / name / "evaluation"
    folder.mkdir()
    scores, samples = {}, {}
    for task, right in tasks.items():
        n, correct = len(right), sum(right)
        share = {"accuracy": correct / n, "stderr": accuracy_standard_error(correct, n)}
        values = (bits or {}).get(task)
        extra: dict[str, Any] = {"language": task.removesuffix("_few_shot")[-2:]}
        if values:  # as a new evaluation writes it
            extra |= {"methods": {"box": correct, "none": n - correct}, "mean_tokens": 20.5, "cut_outputs": 2}
            extra |= {"mean_thinking_tokens": 0.0, "right_with_false_equation": 1}
        scores[task] = TaskScore(n=n, correct=correct, **share, data_sha256="0" * 64, **extra)
        samples[task] = [
            Sample(
                **{
                    "id": f"{task.removesuffix('_few_shot')}-{item}",
                    "correct": ok,
                    "gold": "12",
                    "steps": 2 + item % 5,
                },
                **{"verdict": "equal" if ok else "different", "extracted": "12" if ok else None},
                method="box" if ok else "none",
                **({"gold_bits": values[item] * (8 + item), "gold_bytes": 8 + item} if values else {}),
                **({"level": 1 + item % 5} if task.startswith("math") else {}),
                stage="high" if item % 2 else "middle",
                question=f"小明有 {item} 个苹果 <script>alert({item})</script>?",
                output=f" {name} writes: 5 + 7 = 12 & so on.\nThe answer is 12.",
            )
            for item, ok in enumerate(right)
        ]
    begin = {"base1": BEGIN, "base2": ""}.get(name)
    results, inputs = Results(model=name, begin=begin, tasks=scores), {"hf": converted.fingerprint()}
    evaluation_folder.write_evaluation(folder, results, samples, inputs=inputs, config={})


def write_results(
    root: Path,
    right: Mapping[str, Mapping[str, Sequence[bool]]],
    bits: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Path:
    """Write a corpus, a synthesis, a base, and a run for each name, with these items of its tasks right.

    `bits` are the bits per byte of each item, by run and task.
    """
    sources = {pool: {"read": 100, "kept": 91, "dropped": {"too_short": 5, "duplicate": 4}} for pool in POOLS}
    part = {"train": {"documents": 86, "tokens": 51234}, "validation": {"documents": 5, "tokens": 2710}}
    method = {"outcomes": 100, "accepted": 85, "rejected": {"check": 15}, "records": 85, "tokens": 34000}
    method |= {"capped": False, "requests": 200, "cost": 1.7, "cost_per_record": 0.02}
    counts = {
        "corpus": {"sources": sources, "pools": {pool: part for pool in POOLS}},
        "synthesis": {"stopped": None, "budget": {"seeds": 100}, "methods": {"tutor_amp": method}},
    }
    for kind, counted in counts.items():
        (root / kind).mkdir(parents=True)
        write_manifest(root / kind, kind, inputs={}, counts=counted, config={})
    corpus = load_manifest(root / "corpus", "corpus").fingerprint()
    base = write_run(root, "base", {"corpus": corpus}).fingerprint()
    for name, tasks in right.items():
        if name != "base":
            write_run(root, name, {"corpus": corpus, "init": base})
        write_evaluation(root, name, tasks, (bits or {}).get(name))
    return root


def report_json(
    root: Path, runs: Sequence[str], pairs: Sequence[tuple[str, str]], **options: Any
) -> dict[str, Any]:
    """Build the report and return the content of report.json."""
    build_report(root, root / "report", runs=runs, comparisons=pairs, **options)
    return json.loads((root / "report" / "report.json").read_text(encoding="utf-8"))
