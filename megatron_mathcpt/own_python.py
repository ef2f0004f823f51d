"""How this program starts its own code, in this process of Python and in another.

Python's `-m` and `-c` put the current folder first on the path, where a user may be among files of others: a
`numpy.py` there would be imported. `-P` leaves it out, and the package must then be found by its own place.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SAFE = "PYTHONSAFEPATH"  # the variable for `-P`
_ROOT = Path(__file__).resolve().parents[1]


def collect_rarely() -> None:
    """Spare a process with torch and Megatron-Core a fifth of its start, and half a second at its end.

    The garbage collector would examine their many objects again and again, and once more at exit.
    """
    gc.set_threshold(10_000)  # new objects; Python's own choice is 700
    atexit.register(gc.freeze)  # what is frozen is not examined


def own_command(words: Iterable[str]) -> list[str]:
    """The command that runs `words` (`-m MODULE ...` or `-c CODE`), to be given `own_environment`."""
    return [sys.executable, "-P", *words]


@contextmanager
def safe_path() -> Iterator[None]:
    """Have processes of `multiprocessing` start as `own_command`'s do; they get this process's path later."""
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[_SAFE]
        os.environ.update({_SAFE: before} if before is not None else {})


def own_environment() -> dict[str, str]:
    """This process's environment, in which this package is found as in this process."""
    # An installed one is found without; before the standard library its neighbours could replace modules.
    found = [] if _ROOT.name in ("site-packages", "dist-packages") else [str(_ROOT)]
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    paths = [*found, *(folder for folder in given if folder not in found)]
    return {**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
