"""Verdicts on adversarial pairs, on every local gold, and on text that tries to hang it or to run code."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest

from megatron_mathcpt.answers import Verdict, grade
from megatron_mathcpt.answers.grader import Worker
from tests.support.answer_pairs import Pair, load_answer_pairs
from tests.support.json_lines import read_json_lines

PAIRS = load_answer_pairs()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.gold} ~ {pair.prediction}")
def test_pair(pair: Pair) -> None:
    assert grade(pair.gold, pair.prediction, pair.kind).equal is pair.equal


def test_verdict_is_symmetric_for_mathematics() -> None:
    # An omitted unit, and words around the answer, are read only in the prediction.
    dressed = re.compile("[a-z]")
    pairs = [p for p in PAIRS if p.kind == "latex" and not dressed.search(p.gold[-1] + p.prediction)]
    assert len(pairs) > 50
    for pair in pairs:
        assert grade(pair.prediction, pair.gold, "latex").equal in (pair.equal, None), pair


@pytest.mark.parametrize(
    ("gold", "prediction", "status", "reason"),
    [
        ("7", "7.0", "correct", "value"),
        ("7", "8", "wrong", "value"),
        ("7", "", "wrong", "no answer"),
        ("7", "1+" * 5000 + "1", "ungraded", "too long or nested too deep to grade"),
        *[("3", odd, "wrong", None) for odd in (". 3", "101_二", "52_{2.5}", "\\binom{\\pi}{2}")],
        ("1x=1, y=21", "1 x=1, y=2 1", "wrong", None),
    ],
)
def test_status_and_reason(gold: str, prediction: str, status: str, reason: str | None) -> None:
    verdict = grade(gold, prediction, "latex")
    assert verdict.status == status
    assert reason in (None, verdict.reason)
    assert grade(gold, prediction, "latex") == verdict


HOSTILE = [
    "9^{9^{9^{9}}}",
    "10^{10^{10}}!",
    "(((" * 600,
    "\\frac{" * 300,
    "\\sqrt{" * 45 + "2" + "}" * 45,
    "x^{" * 40 + "x" + "}" * 40,
    "\\binom{10^9}{5\\cdot 10^8}",
    "\\sum_{k=1}^{10^{12}} \\frac{1}{k^2}",
    "\\int_0^{\\infty} e^{-x^2}\\sin(x^{x})\\,dx",
    "1" + "+1" * 900,
    "x" * 1900,
    "-" * 1900 + "1",
    ",".join(str(n) for n in range(400)),
    "\\text{" * 200 + "}" * 200,
    "0" * 1999,
    "1e999999999",
    "\\begin{pmatrix}" + "1&" * 600 + "\\end{pmatrix}",
    "__import__('os').system('touch /nowhere/hostile')",
    "\ud800\udfff\x00\x1b[2J",
]


HOSTILE += [
    "\\begin{cases}\\end{cases}",
    "一亿万" * 500,
    "x=\\tan(km)+\\frac{k}{m}, k \\in Z, m \\in Z",
    "m\\in Z" * 90,
    "k\\in Z, " + ", ".join(f"x>{n}" for n in range(200)),
    "\\cap".join(f"(-{n},{n + 1})" for n in range(150)),
    ",".join(f"({n},{n + 1})" for n in range(200)),
    "\\binom{10^{6000}}{1500}",
    "\\sin(2^{19000}x)" * 30,
    "\\frac{2^{19000}}{3^{12000}}" + "+\\frac{2^{18999}}{3^{11999}}" * 40,
    "\\frac" * 390,
    "x " * 590,
    "x^" * 500 + "x",
    "\\lbrace " * 200 + "\\rbrace " * 200,
    "（" * 900,
    "ﷺ" * 1900,
    "𐩀" * 500,
    "1a" * 900,
    "," * 1900 + "x",
    "+".join(f"x_{{{n}}}" for n in range(180)) + "=0",
]
PLAIN = r"5_n 144_b 12_a 101_\text{two} 2_\theta 3_-1 12_ i<1 \lfloor\infty\rfloor C_n^ \{\}".split()  # noqa: SIM905
TOKENS = (  # noqa: SIM905
    r"0 1 2 9 x y k m + - * / = < > ( ) [ ] { } | ! % ^ _ , ; : . ' $ # & \\ \frac \sqrt{ \pi \le \cup \pm "
    r"\sin \ln ^{ _{ 10^ \in k\in~Z m\in~Z \begin{cases} \end{cases} \begin{pmatrix} \{ \} \text{ \boxed{ "
    r"\binom ^\circ cm 和 万 亿 一 分之 又 点 个 R or ² ① ½"
).split()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20].encode("ascii", "replace").decode())
def test_hostile_text_is_bounded(text: str) -> None:
    for first, second in (
        ("1", text),
        ("x=k\\pi, k\\in Z", text),
        (text[:1500], text),
        (text, "(1,\\frac{x}{2})"),
    ):
        began = time.process_time()
        grade(first, second)
        # Of our rules alone; math-verify's process takes 0.7 s to start, and then at most its limit.
        assert time.process_time() - began < 1, first


def test_no_text_raises() -> None:
    choose = random.Random(15)
    texts = ["".join(choose.choices(TOKENS, k=choose.randint(1, 20))) for _ in range(800)]
    for text in PLAIN + texts:
        verdict = grade(choose.choice(("1", "x>1", "(1,2)", "x=k\\pi, k\\in Z", "1,2")), text)
        assert not verdict.reason.startswith("cannot be compared"), text


def test_worker_is_killed_when_it_hangs_and_used_again() -> None:
    # The limit is of CPU time, so a busy machine changes nothing.
    with closing(Worker(timeout_seconds=1.5)) as worker:
        assert worker.compare("\\int_0^1 2x\\,dx", "1") == Verdict(True, "math-verify")
        first = worker._process
        late = Verdict(None, "math-verify gave no verdict in 1.5 s of CPU time")
        assert worker.compare("10000000!", "2") == late
        assert first is not None
        assert first.poll() is not None, "the hanging process was killed"
        assert worker.compare("\\sum_{k=1}^{3} k", "6") == Verdict(True, "math-verify")


def test_worker_that_is_killed_or_stopped_from_outside_is_replaced() -> None:
    with closing(Worker(stuck_seconds=3)) as worker:
        for sign in (signal.SIGKILL, signal.SIGSTOP):
            assert worker.compare("\\sum_{k=1}^{3} k", "6") == Verdict(True, "math-verify")
            assert worker._process is not None
            # In the middle of a comparison, as the out-of-memory killer does.
            threading.Timer(0.1, os.kill, (worker._process.pid, sign)).start()
            verdict = worker.compare("10000000!", "2")
            assert verdict == Verdict(None, "math-verify's process was killed or stuck"), sign


def test_worker_ends_with_its_parent() -> None:
    code = (
        "from megatron_mathcpt.answers.grader import Worker; worker = Worker(); "
        "worker.compare('\\\\int_0^1 x', '2'); print(worker._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{int(done.stdout)}/cmdline").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _golds(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.glob("*/test.jsonl"))
    return [(row["answer"], row["type"]) for file in files for row in read_json_lines(file)]


def test_every_local_gold_equals_itself(benchmarks_dir: Path) -> None:
    golds = set(_golds(benchmarks_dir))
    assert len(golds) > 1000
    for answer, kind in golds:
        for form in (answer, f"$ {answer.strip('$ ')} $", f"\\boxed{{{answer}}}"):
            assert grade(answer, form, kind).equal is True, (answer, form)


def test_different_local_golds_are_equal_only_where_mathematics_says_so(benchmarks_dir: Path) -> None:
    golds = sorted({answer for answer, kind in _golds(benchmarks_dir) if kind == "latex"})
    plain = [answer for answer in golds if re.fullmatch(r"-?\d+(\.\d+)?", answer)]
    for first, second in combinations(random.Random(1).sample(plain, 100), 2):
        assert grade(first, second, "latex").equal is (Fraction(first) == Fraction(second)), (first, second)
    others = [answer for answer in golds if answer not in plain]
    for first, second in combinations(random.Random(1).sample(others, 70), 2):
        verdict = grade(first, second, "latex").equal
        assert verdict is grade(second, first, "latex").equal, (first, second)
        if verdict:  # by hand: the only equal pairs are of the same digits in the same order
            assert re.sub(r"\D", "", first) == re.sub(r"\D", "", second), (first, second)
