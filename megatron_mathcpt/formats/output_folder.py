"""Output folders: nothing is written into a folder with files of others, and one process writes at a time.

A folder is ours if its manifest or its marker names the kind of output. The marker, `.lock`, is written
before anything else, so that an interrupted stage finds its folder again. A link to a folder is followed: its
target must be as empty or as much ours. Inside of a folder no link is followed.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from megatron_mathcpt.errors import ConfigError, first_of, one_line, writing
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME
from megatron_mathcpt.log import get_logger

MARKER = ".lock"
_PATIENCE_SECONDS = 5.0  # for the kernel to end the processes of a killed job
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems, as they are mounted
_logger = get_logger(__name__)


def claim_folder(out: Path, kind: str, written: Iterable[str] = ()) -> None:
    """Create `out`, or check that it is empty or an output of `kind`, and mark it as one.

    `written` are names that the caller will write or replace in it; they must not be links. Raises
    `ConfigError`, with nothing changed, if the folder is not ours or cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        # Listed before the marker is read: another process that claims it now marks it before it writes more.
        names = sorted({*os.listdir(out)} - {MARKER})
        owner = _kind_of(out)
        if names and owner != kind:
            found = f"contains {first_of(names)}" if owner is None else f"is a folder of kind '{owner}'"
            raise ConfigError(f"{out}: {found}, no output of kind '{kind}'; give a new or an empty folder")
        if links := [name for name in (MARKER, FILE_NAME, *written) if (out / name).is_symlink()]:
            raise ConfigError(f"{out / links[0]}: is a link, and would be written through; remove it")
        if owner is None:
            # Without truncation: others may be doing the same, or have read it already.
            (out / MARKER).touch()
            with (out / MARKER).open("r+", encoding="utf-8") as file:
                file.write(f"{kind}\n")


@contextmanager
def locked_folder(out: Path, kind: str, written: Iterable[str] = ()) -> Iterator[None]:
    """Claim `out` and lock it for this process; raises `ConfigError` naming the process that has it."""
    claim_folder(out, kind, written)
    with writing(out):
        file = (out / MARKER).open("r+", encoding="utf-8")
    with file:
        # The kernel releases a flock when its process dies, so no lock is ever stale. On file systems without
        # flock across nodes it excludes processes of the same node only.
        job = os.environ.get("SLURM_JOB_ID")
        owner = f"process {os.getpid()} on {socket.gethostname()}{f', job {job}' if job else ''}"
        with writing(out):
            _acquire(file, out)
            # The first line stays the same, so that a process that reads it meanwhile still finds it.
            file.seek(0)
            file.truncate(file.write(f"{kind}\n{owner}\n"))
            file.flush()
        yield


def write_own_file(path: Path, data: bytes, start: bytes) -> None:
    """Write `data`, which begins with `start`, to `path`; only a file that does so too is replaced."""
    assert data.startswith(start)
    with writing(path):
        if path.exists():
            with path.open("rb") as file:
                if file.read(len(start)) != start:
                    raise ConfigError(f"{path}: is there and not of this command; give another name")
        write_atomically(path, data)


def _acquire(file: TextIO, out: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                owner = one_line(file.read().partition("\n")[2]) or "another process"
                remedy = "wait for it to end, stop it, or choose another --out"
                raise ConfigError(f"{out}: in use by {owner}; {remedy}") from error
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _logger.warning("%s: its file system has no locks; start nothing else in this folder", out)
            return None


def _kind_of(out: Path) -> str | None:
    """The kind of output that `out` says it is; a damaged manifest is reported by whoever reads it."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads((out / FILE_NAME).read_bytes())["kind"]
        if isinstance(found, str):
            return found
    with suppress(OSError, ValueError):
        return (out / MARKER).read_text(encoding="utf-8").partition("\n")[0] or None
    return None
