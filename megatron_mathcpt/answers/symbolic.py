"""math-verify in a worker process that is killed when it takes too long, and used again when it does not.

Only for what our own rules leave open. The worker reads and writes JSON lines, so nothing is pickled or
executed; its memory is limited too.
"""

import json
import os
import select
import subprocess
import sys
import threading
from functools import lru_cache

TIMEOUT_SECONDS = 3.0


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
                ready, _, _ = select.select([process.stdout], [], [], self._timeout_seconds)
                line = process.stdout.readline() if ready else b""
            except BrokenPipeError:
                line = b""
            if not line:
                self.close()
                return None, f"math-verify gave no verdict in {self._timeout_seconds:g} s"
            return json.loads(line), "math-verify"

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "megatron_mathcpt.answers.worker"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert self._process.stdout is not None
            self._process.stdout.readline()  # its imports do not count against the first answer
        return self._process


def verify(gold: str, prediction: str) -> tuple[bool | None, str]:
    """Whether math-verify takes each for the other; None when it cannot read them or ran out of time."""
    return _worker(os.getpid()).ask(gold, prediction)


@lru_cache(maxsize=1)
def _worker(_process_id: int) -> Worker:
    """The worker of this process; a fork gets its own."""
    return Worker()
