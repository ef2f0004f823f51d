"""math-verify in a worker process that is killed when it takes too long, and used again when it does not.

Only for what our own rules leave open. The worker (`main`) reads pairs of answers and writes
verdicts as JSON lines on its standard streams, so nothing is pickled or executed; its memory is limited too.
Time is CPU time: a verdict must not depend on how busy the machine is.
"""

import json
import logging
import os
import resource
import select
import subprocess
import sys
import threading
import time
from functools import lru_cache

TIMEOUT_SECONDS = 3.0  # of CPU time
_MEMORY_BYTES = 2 * 2**30
_PATIENCE = 10  # times that in all, for a worker that gets no CPU


class Worker:
    """One worker process, started at first use and again after a kill."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, gold: str, prediction: str) -> tuple[bool | None, str]:
        """math-verify's verdict, and the reason when there is none."""
        with self._lock:
            process = self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([gold, prediction]).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline() if self._answers(process) else b""
            except BrokenPipeError:
                line = b""
            if not line:
                self.close()
                return None, f"math-verify gave no verdict in {self._timeout_seconds:g} s of CPU time"
            return json.loads(line), "math-verify"

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for an answer; False when the process, of one thread, has had its CPU time."""
        assert process.stdout is not None
        end = time.monotonic() + _PATIENCE * self._timeout_seconds
        limit = _cpu_seconds(process.pid) + self._timeout_seconds
        while time.monotonic() < end and (rest := limit - _cpu_seconds(process.pid)) > 0:
            if select.select([process.stdout], [], [], max(rest, 0.01))[0]:
                return True
        return False

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", f"from {__name__} import main; main()"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert self._process.stdout is not None
            self._process.stdout.readline()  # its imports do not count against the first answer
        return self._process


def _cpu_seconds(process_id: int) -> float:
    """User and system time of another process: Linux numbers its CPU clocks so (clock_getcpuclockid)."""
    return time.clock_gettime((~process_id << 3) | 2)


def verify(gold: str, prediction: str) -> tuple[bool | None, str]:
    """Whether math-verify takes each for the other; None when it cannot read them or ran out of time."""
    return _worker(os.getpid()).ask(gold, prediction)


@lru_cache(maxsize=1)
def _worker(_process_id: int) -> Worker:
    """The worker of this process; a fork gets its own."""
    return Worker()


def main() -> None:
    """The worker process: answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[object]:
        # Only its LaTeX grammar: the plain-text one goes through sympy's parse_expr, which evaluates.
        return list(
            parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        )

    def equal(gold: str, prediction: str) -> bool | None:
        first, second = read(gold), read(prediction)
        if not first or not second:
            return None
        return all(verify(a, b, timeout_seconds=None) for a, b in ((first, second), (second, first)))

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            verdict = equal(*json.loads(line))
        except (MemoryError, RecursionError, ValueError, TypeError, AttributeError, ArithmeticError):
            verdict = None
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
