"""Our grader beside math-verify over the samples of a finished evaluation; prints where they disagree.

    python tests/benchmarks/second_opinion.py EVALUATION_DIR [--show 20]

math-verify is called as the minerva task of lm-eval calls it, on the answer that we found in the output.
Scores stay what they are: a disagreement is a place where a reader should look.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from megatron_mathcpt.formats.evaluation_folder import KIND, Sample, load_results, samples_path
from megatron_mathcpt.formats.files import read_rows
from megatron_mathcpt.formats.manifest import load_manifest
from tests.benchmarks.eval_graders import FAILURES, math_verify


def compare(samples: list[Sample]) -> tuple[Counter[str], list[Sample]]:
    """Counts of the four outcomes (ours, theirs), and the samples on which the two disagree."""
    counts: Counter[str] = Counter()
    apart = []
    for sample in samples:
        try:
            theirs = math_verify(sample.gold, sample.extracted or "", "")
        except FAILURES:
            theirs = False
        counts[f"{'right' if sample.correct else 'wrong'}, {'right' if theirs else 'wrong'}"] += 1
        if theirs != sample.correct:
            apart.append(sample)
    return counts, apart


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--show", type=int, default=20, help="disagreements printed of each task")
    chosen = parser.parse_args()
    load_manifest(chosen.evaluation, KIND)
    console = Console()
    outcomes = ("right, right", "right, wrong", "wrong, right", "wrong, wrong")
    table = Table("task", "samples", *outcomes, "agree in %", title="ours, math-verify")
    for task in load_results(chosen.evaluation).tasks:
        samples = read_rows(samples_path(chosen.evaluation, task), Sample)
        counts, apart = compare(samples)
        agree = 100 * (1 - len(apart) / len(samples))
        table.add_row(task, str(len(samples)), *(str(counts[name]) for name in outcomes), f"{agree:.2f}")
        for sample in apart[: chosen.show]:
            shown = f"{sample.gold!r}, answered {sample.extracted!r}: ours {sample.verdict} ({sample.reason})"
            console.print(f"{task} {sample.id}: gold {escape(shown)}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
