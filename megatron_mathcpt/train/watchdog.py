"""A process that stands still says where, and ends, so that the job can be started again.

faulthandler's own thread needs no interpreter lock: it works while Python waits in a collective. A process
that is stopped from outside cannot speak; the others, waiting for it, do, and their end ends the job.
"""

import faulthandler
import os
from pathlib import Path
from types import TracebackType

FOLDER = ".stacks"


class Watchdog:
    """Ends this process with status 1 when `alive` is not called for `seconds`; stacks go to a file.

    The file is `.stacks/rank_N.txt` of the run folder, the stacks of all of the process' threads.
    """

    def __init__(self, run_folder: Path, seconds: float) -> None:
        self._path = run_folder / FOLDER / f"rank_{int(os.environ.get('RANK', '0')):05d}.txt"
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", encoding="utf-8")
        self.alive()
        return self

    def alive(self) -> None:
        """Start the clock again."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()


def stack_files(run_folder: Path) -> list[Path]:
    """The files that stacks were written to, by rank."""
    found = sorted((run_folder / FOLDER).glob("rank_*.txt"))
    return [path for path in found if path.stat().st_size]
