"""Whether two final answers are equivalent: rules by kind, without executing anything the model wrote.

No pair of texts takes more than 2 s of CPU time or 500 MB, and none raises: lengths and depth are limited,
our rules count their steps (`expression.spend`); what they leave undecided goes to math-verify, in a process
that is killed at its own limits.
What meets a limit is ungraded, and the reason names the limit.

Conventions: exact mathematics (a rounded decimal is not the fraction); a unit or degree sign may be omitted
but must not differ; 50% is 0.5, 12% is not 12, but for a question that asks for a percentage (type number,
and 12 is the gold answer); blanks are ordered, solutions are not; expansions are equal.
"""

import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import unicodedata
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

from megatron_mathcpt.answers.choices import chosen_letters
from megatron_mathcpt.answers.equality import UNDECIDED, equivalent
from megatron_mathcpt.answers.expression import STEPS, OutOfSteps
from megatron_mathcpt.answers.normalize import normalize, words_as_symbols
from megatron_mathcpt.own_python import own_command, own_environment

Status = Literal["correct", "wrong", "ungraded"]
MAX_CHARACTERS = 2000  # longer answers are ungraded without any parsing
MAX_STEPS = 50_000  # about 0.3 s
TOO_LARGE = "too long or nested too deep to grade"
_MAX_DEPTH = 50
# Words and subscripts of numbers, which it drops.
_NOT_FOR_MATH_VERIFY = re.compile(
    r"(?<![\\A-Za-z])[A-Za-z]{4,}|[一-鿿]|\\(?:label|text)|[\d)] ?_|\d\.\d+\.\d"
)
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})")
_CHOICE = re.compile(r"\(?[A-H]\)?|A?B?C?D?E?F?")
_MAX_FOR_MATH_VERIFY = 500  # characters; some more of any notation take it longer than its limit
# Of CPU time, as a verdict must not depend on how busy the machine is. The start of its process takes 0.7 s.
TIMEOUT_SECONDS = 0.6
_MEMORY_BYTES = 400 * 2**20


class Verdict(NamedTuple):
    equal: bool | None  # None: undecided
    reason: str  # the rule that decided

    @property
    def status(self) -> Status:
        return "ungraded" if self.equal is None else "correct" if self.equal else "wrong"


def grade(gold: str, prediction: str, kind: str = "auto") -> Verdict:
    """Compare two answers in bounded time; `kind` is the benchmark item's, `auto` if it is unknown."""
    if not prediction.strip():
        return Verdict(False, "no answer")
    if gold.strip() == prediction.strip():
        return Verdict(True, "same text")
    if kind in ("auto", "number") and _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(prediction):
        return Verdict(int(gold) == int(prediction), "value")  # at a thousandth of the time of the rules
    limit = STEPS.set([MAX_STEPS])
    try:
        return _compare(gold, prediction, kind)
    except OutOfSteps as error:
        return Verdict(None, str(error) or f"not decided in {MAX_STEPS} steps")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # No way to this is known; but one odd output must not end a whole evaluation.
        return Verdict(None, f"cannot be compared ({type(error).__name__})")
    finally:
        STEPS.reset(limit)


def _compare(gold: str, prediction: str, kind: str) -> Verdict:  # noqa: PLR0911 - one rule a return
    if any(map(_too_large, (gold, prediction))):
        return Verdict(None, TOO_LARGE)
    first, second = (words_as_symbols(normalize(text)) for text in (gold, prediction))
    if any(map(_too_large, (first, second))):
        return Verdict(None, TOO_LARGE)
    if kind in ("choice", "multichoice") or (kind == "auto" and _CHOICE.fullmatch(first)):
        chosen = _letters(first, several=True)
        letters = _letters(second, several=kind == "multichoice" or len(chosen) > 1)
        # Several letters may be the name of a segment: only letters make it a choice.
        if kind != "auto" or len(chosen) < 2 or len(letters) > 1:
            right = bool(letters) and chosen == letters
            return Verdict(right, "letters" if letters else "no choice letter")
    ordered = kind == "cloze" or ";" in first
    if ordered:
        first, second = map(_blanks, (first, second))
    if kind == "number" and "%" not in first:  # if the question asks for a percentage, digits are its answer
        bare = re.sub(r"^\(?\+?(-?(?:[\d.,/ {}]|\\frac)+?) ?%(?: [a-z]+)?\)?$", r"\1", second)
        second = bare if equivalent(first, bare)[0] else second
    equal, reason = equivalent(first, second, ordered=ordered)
    if equal is not None or reason == UNDECIDED:
        return Verdict(equal, reason)
    if _NOT_FOR_MATH_VERIFY.search(first + second):
        return Verdict(False, "not an answer of this form")
    if max(len(first), len(second)) > _MAX_FOR_MATH_VERIFY:
        return Verdict(None, "too long for math-verify")
    return _worker(os.getpid()).compare(first, second)


def _too_large(text: str) -> bool:
    # As Unicode's compatibility form, which makes 18 letters of a ligature, and brackets of full-width ones.
    text = unicodedata.normalize("NFKC", text)
    if len(text) > MAX_CHARACTERS or sum(map(text.count, "([{")) <= _MAX_DEPTH:
        return len(text) > MAX_CHARACTERS
    return max(accumulate((sign in "([{") - (sign in ")]}") for sign in text)) > _MAX_DEPTH


def _letters(text: str, *, several: bool) -> set[str]:
    text = text.upper() if re.fullmatch(r"\(?[a-h]\)?", text) else re.sub("[;/]", ",", text.lstrip("- "))
    return set(chosen_letters(text, several=several, answers=True))


def _blanks(text: str) -> str:
    """Return the blanks of a cloze that are numbered, (1)5；(2)6, in the order of their numbers."""
    parts = re.split(r"(?:(?<![^\s;,.\d])\((\d{1,2})\)|\\label\{(\d+)\}|第(\d+)[空题问小]填?)\s*[:,.]?", text)
    numbers = [int(next(filter(None, parts[at : at + 3]))) for at in range(1, len(parts), 4)]
    contents = [part.strip(" ,;.") for part in parts[4::4]]
    complete = all(contents) and sorted(numbers) == [*range(1, len(numbers) + 1)]
    if parts[0].strip() or len(numbers) < 2 or not complete:
        return text
    return ";".join(content for _, content in sorted(zip(numbers, contents, strict=True)))


class Worker:
    """math-verify in one subprocess, which reads pairs of answers and writes verdicts as JSON lines."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS, stuck_seconds: float = 60) -> None:
        self._timeout_seconds = timeout_seconds
        self._stuck_seconds = stuck_seconds  # of wall time, for a process that gets no CPU time at all
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def compare(self, gold: str, prediction: str) -> Verdict:
        """Compare two normalised answers, in both directions; what math-verify cannot parse is wrong."""
        with self._lock:  # grading runs in several threads
            if self._process is None or self._process.poll() is not None:
                self.close()
                code = f"from {__name__} import main; main({self._timeout_seconds})"
                command, env = own_command(["-u", "-c", code]), own_environment()
                pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
                self._process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=nowhere)
            line = self._ask(self._process, json.dumps([gold, prediction]).encode() + b"\n")
            if not line:
                if self.close() == -signal.SIGPROF:
                    limit = self._timeout_seconds
                    return Verdict(None, f"math-verify gave no verdict in {limit:g} s of CPU time")
                return Verdict(None, "math-verify's process was killed or stuck")
            equal = json.loads(line)
            return Verdict(bool(equal), "cannot be read" if equal is None else "math-verify")

    def _ask(self, process: subprocess.Popen[bytes], question: bytes) -> bytes:
        """The line that answers a question; empty if the process ends, or is stuck."""
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError):
            process.stdin.write(question)
            process.stdin.flush()
        ready = select.poll()
        ready.register(process.stdout)
        return process.stdout.readline() if ready.poll(1000 * self._stuck_seconds) else b""

    def close(self) -> int | None:
        """End the process, if there is one, and return its exit status."""
        if (process := self._process) is None:
            return None
        self._process = None
        process.kill()
        process.communicate()  # also closes its pipes
        return process.returncode


@lru_cache(maxsize=1)
def _worker(_process_id: int) -> Worker:
    # By process id: a forked process must not share the pipes of its parent's worker.
    return Worker()


def main(timeout_seconds: float) -> None:
    """Run the subprocess: one verdict per line until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    # The kernel kills the process, even inside a loop in C, when an answer has used its CPU time.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no verdict
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    # Only its LaTeX grammar: the plain-text one calls sympy's parse_expr, which evaluates code.
    grammar, options = [LatexExtractionConfig()], {"fallback_mode": "no_fallback", "parsing_timeout": None}
    parse("$1$", grammar, **options)  # reads its tables, which takes 0.1 s

    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, timeout_seconds)
        equal = None
        with suppress(RecursionError, ValueError, TypeError, AttributeError, ArithmeticError):
            first, second = (parse(f"${text}$", grammar, **options) for text in json.loads(line))
            if first and second:
                both = ((first, second), (second, first))
                equal = all(verify(*pair, timeout_seconds=None) for pair in both)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(equal) + "\n")
