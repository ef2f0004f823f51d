"""Whether two final answers are equivalent: rules by kind, without executing anything the model wrote.

Conventions: exact mathematics (a rounded decimal is not the fraction); a unit or degree sign may be omitted
but must not differ; 50% is 0.5, 12% is not 12; blanks are ordered, solutions are not; expansions are equal.
What our rules leave undecided goes to math-verify, in a subprocess that is killed if it takes too long.
"""

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

from megatron_mathcpt.answers.equality import UNDECIDED, equivalent
from megatron_mathcpt.answers.normalize import normalize, words_as_symbols

Status = Literal["correct", "wrong", "ungraded"]
MAX_CHARACTERS = 2000  # longer answers are ungraded without any parsing
_MAX_DEPTH = 50
_LETTER = r"[A-H]"


class Verdict(NamedTuple):
    equal: bool | None  # None: undecided
    reason: str  # the rule that decided

    @property
    def status(self) -> Status:
        return "ungraded" if self.equal is None else "correct" if self.equal else "wrong"


def grade(gold: str, prediction: str, kind: str = "auto") -> Verdict:  # noqa: PLR0911 - one rule a return
    """Compare two answers within seconds; `kind` is the benchmark item's, `auto` if it is unknown."""
    if not prediction.strip():
        return Verdict(False, "no answer")
    if gold.strip() == prediction.strip():
        return Verdict(True, "same text")
    if max(len(gold), len(prediction)) > MAX_CHARACTERS or max(map(_depth, (gold, prediction))) > _MAX_DEPTH:
        return Verdict(None, "too long or nested too deep to grade")
    first, second = (words_as_symbols(normalize(text)) for text in (gold, prediction))
    letters = _letters(second)
    if kind in ("choice", "multichoice") or (kind == "auto" and re.fullmatch(rf"\(?{_LETTER}\)?", first)):
        right = bool(letters) and _letters(first) == letters
        return Verdict(right, "letters" if letters else "no choice letter")
    # Letters in this order are several choices, or the name of a segment: only letters make it a choice.
    if kind == "auto" and re.fullmatch(r"A?B?C?D?E?F?", first) and min(len(first), len(letters)) > 1:
        return Verdict(set(first) == letters, "letters")
    equal, reason = equivalent(first, second, ordered=kind == "cloze" or ";" in first)
    if equal is not None or reason == UNDECIDED:
        return Verdict(equal, reason)
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}|[一-鿿]", second):
        return Verdict(False, "not an answer of this form")
    return _worker(os.getpid()).compare(first, second)


def _depth(text: str) -> int:
    return max(accumulate(((sign in "([{") - (sign in ")]}") for sign in text), initial=0))


def _letters(text: str) -> set[str]:
    """Return the choice letters of an answer: one at its start, `B. 3 cm`, or several, `ABD`, `A and D`."""
    first = re.match(rf"(?:option|choice|选项|选)?\s*\(?\s*({_LETTER})\s*(?:\)|[.:]|$)", text, re.IGNORECASE)
    several = re.match(rf"[(\s]*{_LETTER}(?:[\s,;、和与&)(]|and)*{_LETTER}(?![a-z])", text)
    if first and not several:
        return {first.group(1).upper()}
    return set(re.findall(rf"(?<![a-zA-Z]){_LETTER}(?![a-z])|(?<={_LETTER}){_LETTER}(?![a-z])", text))


TIMEOUT_SECONDS = 3.0  # of CPU time: a verdict must not depend on how busy the machine is
_MEMORY_BYTES = 2 * 2**30


class Worker:
    """math-verify in one subprocess, which reads pairs of answers and writes verdicts as JSON lines."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def compare(self, gold: str, prediction: str) -> Verdict:
        """Compare two normalised answers, in both directions; what math-verify cannot parse is wrong."""
        with self._lock:  # grading runs in several threads
            process = self._process
            if process is None or process.poll() is not None:
                code = f"from {__name__} import main; main({self._timeout_seconds})"
                pipe, command = subprocess.PIPE, [sys.executable, "-u", "-c", code]
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
                self._process = process
            assert process.stdin and process.stdout
            line = b""
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps([gold, prediction]).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()  # empty if the process was killed
            if not line:
                self.close()
                limit = self._timeout_seconds
                return Verdict(None, f"math-verify gave no verdict in {limit:g} s of CPU time")
            equal = json.loads(line)
            return Verdict(bool(equal), "cannot be read" if equal is None else "math-verify")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@lru_cache(maxsize=1)
def _worker(_process_id: int) -> Worker:
    # By process id: a forked process must not share the pipes of its parent's worker.
    return Worker()


def main(timeout_seconds: float) -> None:
    """Run the subprocess: one verdict per line until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    # Only its LaTeX grammar: the plain-text one calls sympy's parse_expr, which evaluates code.
    grammar, options = [LatexExtractionConfig()], {"fallback_mode": "no_fallback", "parsing_timeout": None}

    for line in sys.stdin:
        # The kernel kills the process, even inside a loop in C, when an answer has used its CPU time.
        signal.setitimer(signal.ITIMER_PROF, timeout_seconds)
        equal = None
        with suppress(MemoryError, RecursionError, ValueError, TypeError, AttributeError, ArithmeticError):
            first, second = (parse(f"${text}$", grammar, **options) for text in json.loads(line))
            if first and second:
                both = ((first, second), (second, first))
                equal = all(verify(*pair, timeout_seconds=None) for pair in both)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(equal) + "\n")
