"""One job at a time in a run folder."""

import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from megatron_mathcpt.errors import ConfigError

_PATIENCE_SECONDS = 5.0  # for the workers of a killed job, which the kernel is about to end


class FolderLock:
    """Holds `.lock` of a folder as long as this process lives; the kernel frees it when the process dies.

    Raises `ConfigError` naming host, process and Slurm job of the holder. On file systems without flock
    across nodes it guards against jobs of the same node only.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._acquired():
            if time.monotonic() > deadline:
                self._file.seek(0)
                raise ConfigError(
                    f"{self._path.parent}: in use by {self._file.read().strip() or 'another job'}; "
                    "wait for it to end, stop it, or choose another --out"
                )
            time.sleep(0.1)
        self._file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' if job else ''}\n")
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _acquired(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
