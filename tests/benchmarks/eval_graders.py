"""Graders on the adversarial pairs, and the time of ours on real golds; prints two tables.

    python tests/benchmarks/eval_graders.py [BENCHMARKS_DIR]

math-verify is called as the minerva task of lm-eval calls it: boxed gold, prediction in a sentence. Our rules
saw these pairs while they were written; what they got right before stands in `pairs.tsv`.
"""

import multiprocessing
import multiprocessing.connection
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT_SECONDS = 12
# What other graders raise on hostile answers: one that fails has not called the pair equal.
FAILURES = (ArithmeticError, AttributeError, TypeError, ValueError, NotImplementedError, AssertionError)
TIMES = ("median ms", "slowest s", "sum s")


def ours(gold: str, prediction: str, kind: str) -> bool:
    from megatron_mathcpt.answers import grade

    return grade(gold, prediction, kind).equal is True


def math_verify(gold: str, prediction: str, _kind: str) -> bool:
    from math_verify import parse, verify

    answer = f"Final Answer: The final answer is ${prediction}$. I hope it is correct."
    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(answer)))


def minerva(gold: str, prediction: str, _kind: str) -> bool:
    from lm_eval.tasks.minerva_math.utils import is_equiv, normalize_final_answer

    return bool(is_equiv(normalize_final_answer(prediction), normalize_final_answer(gold)))


def _serve(grader: Callable[[str, str, str], bool], link: multiprocessing.connection.Connection) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    while True:
        try:
            link.send(grader(*link.recv()))
        except FAILURES:
            link.send(False)


def measure(grader: Callable[[str, str, str], bool]) -> tuple[list[bool], list[float], int]:
    """Verdicts and seconds of every pair, each under a hard limit, and how many ran into it."""
    from tests.answers.conftest import load_pairs

    verdicts, seconds, hangs = [], [], 0
    worker = None
    for pair in load_pairs():
        if worker is None:
            link, other = multiprocessing.Pipe()
            worker = multiprocessing.Process(target=_serve, args=(grader, other), daemon=True)
            worker.start()
            link.send(("1", "1", "latex"))
            link.recv()
        start = time.perf_counter()
        link.send((pair.gold, pair.prediction, pair.kind))
        if link.poll(LIMIT_SECONDS):
            verdicts.append(link.recv() == pair.equal)
        else:
            worker.kill()
            worker, hangs = None, hangs + 1
            verdicts.append(False)
        seconds.append(time.perf_counter() - start)
    if worker:
        worker.kill()
    return verdicts, seconds, hangs


def times(seconds: list[float]) -> tuple[str, str, str]:
    return f"{1000 * statistics.median(seconds):.2f}", f"{max(seconds):.2f}", f"{sum(seconds):.1f}"


def compare_graders() -> Table:
    from tests.answers.conftest import load_pairs

    pairs = load_pairs()
    table = Table("grader", "right", "false equal", "false different", "hangs", *TIMES)
    table.title = f"{len(pairs)} pairs, {sum(not pair.equal for pair in pairs)} of them different"
    for name, grader in (("ours", ours), ("math-verify", math_verify), ("minerva", minerva)):
        right, seconds, hangs = measure(grader)
        false_equal = sum(not ok and not pair.equal for ok, pair in zip(right, pairs, strict=True))
        false_different = sum(not ok and pair.equal for ok, pair in zip(right, pairs, strict=True))
        counts = [str(count) for count in (false_equal, false_different, hangs)]
        table.add_row(name, f"{sum(right) / len(pairs):.3f}", *counts, *times(seconds))
    return table


def time_math(root: Path) -> Table:
    """5,000 gradings of MATH golds: half against themselves in a box, half against the last item's gold."""
    from megatron_mathcpt.answers import extract_answer, grade
    from megatron_mathcpt.formats.benchmark import load_items

    golds = [item.answer for item in load_items(root / "math" / "test.jsonl").items[:2500]]
    outputs = [(gold, f"We get \\boxed{{{gold}}}.") for gold in golds]
    outputs += [(gold, f"The answer is ${golds[place - 1]}$.") for place, gold in enumerate(golds)]
    seconds = []
    for gold, output in outputs:
        start = time.perf_counter()
        grade(gold, extract_answer(output, "en", "latex").text, "latex")
        seconds.append(time.perf_counter() - start)
    table = Table("gradings", *TIMES, title="MATH golds, extraction and grading, one core")
    table.add_row(str(len(outputs)), *times(seconds))
    return table


if __name__ == "__main__":
    console = Console()
    console.print(compare_graders())
    if len(sys.argv) > 1:
        console.print(time_math(Path(sys.argv[1])))
