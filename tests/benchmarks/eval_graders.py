"""Graders on the adversarial pairs, and the time of ours on real golds.

    python tests/benchmarks/eval_graders.py [BENCHMARKS_DIR]

math-verify is called as the minerva task of lm-eval calls it: boxed gold, prediction in a sentence. Our rules
saw these pairs while they were written; what they got right before is in `pairs.tsv`.
"""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from measuring import cost, fresh, kill_processes, print_table

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.formats.benchmark import load_items
from tests.support.answer_pairs import load_answer_pairs

LIMIT_SECONDS = 12
# What other graders raise on hostile answers: one that fails has not called the pair equal.
FAILURES = (ArithmeticError, AttributeError, TypeError, ValueError, NotImplementedError, AssertionError)
TIMES = "median ms | slowest s | sum s"


def ours(gold: str, prediction: str, kind: str) -> bool:
    return grade(gold, prediction, kind).equal is True


def math_verify(gold: str, prediction: str, _kind: str) -> bool:
    from math_verify import parse, verify

    answer = f"Final Answer: The final answer is ${prediction}$. I hope it is correct."
    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(answer)))


def minerva(gold: str, prediction: str, _kind: str) -> bool:
    from lm_eval.tasks.minerva_math.utils import is_equiv, normalize_final_answer

    return bool(is_equiv(normalize_final_answer(prediction), normalize_final_answer(gold)))


def judged(grader: Callable[..., bool], *pair: str) -> tuple[bool, float]:
    """Whether a grader calls a pair equal, and its seconds."""
    logging.disable(logging.CRITICAL)
    begin = time.perf_counter()
    try:
        equal = grader(*pair)
    except FAILURES:
        equal = False
    return equal, time.perf_counter() - begin


def times(seconds: list[float]) -> tuple[str, str, str]:
    return f"{1000 * statistics.median(seconds):.2f}", f"{max(seconds):.2f}", f"{sum(seconds):.1f}"


def compare_graders() -> None:
    """All pairs, each under a hard limit."""
    pairs, rows = load_answer_pairs(), []
    for grader in (ours, math_verify, minerva):
        wrong, seconds, hangs, worker = Counter[bool](), [], 0, None
        for pair in pairs:
            if worker is None:
                worker = fresh()
                worker.submit(judged, grader, "1", "1", "latex").result()  # imports
            judging = worker.submit(judged, grader, pair.gold, pair.prediction, pair.kind)
            try:
                equal, took = judging.result(LIMIT_SECONDS)
            except TimeoutError:
                kill_processes()
                equal, took, worker, hangs = not pair.equal, LIMIT_SECONDS, None, hangs + 1
            wrong[pair.equal] += equal != pair.equal
            seconds.append(took)
        right, name = f"{1 - wrong.total() / len(pairs):.3f}", grader.__name__.replace("_", "-")
        rows.append((name, right, wrong[False], wrong[True], hangs, *times(seconds)))
    title = f"{len(pairs)} pairs, {sum(not pair.equal for pair in pairs)} of them different"
    print_table(f"grader | right | false equal | false different | hangs | {TIMES}", rows, title)


def time_math(root: Path) -> None:
    """5,000 gradings of MATH golds: half against themselves in a box, half against the last item's gold."""
    golds = [item.answer for item in load_items(root / "math" / "test.jsonl").items[:2500]]
    outputs = [(gold, f"We get \\boxed{{{gold}}}.") for gold in golds]
    outputs += [(gold, f"The answer is ${golds[place - 1]}$.") for place, gold in enumerate(golds)]
    seconds = [
        cost(lambda: grade(gold, extract_answer(output, "en", "latex").text, "latex")).wall  # noqa: B023
        for gold, output in outputs
    ]
    title = "MATH golds, extraction and grading, one core"
    print_table(f"gradings | {TIMES}", [(len(outputs), *times(seconds))], title)


def main(benchmarks: Annotated[Path | None, typer.Argument()] = None) -> None:
    compare_graders()
    if benchmarks:
        time_math(benchmarks)


if __name__ == "__main__":
    typer.run(main)
