"""Files whose bytes the disk takes in while the next are made, to leave little to wait for."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

_BYTES = 16 << 20  # handed over at once, or more; each request costs the file system a commit


class EarlySync:
    """Hands what was written to `file` to the disk beside the work, one request at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)
        self._request: Future[None] | None = None
        self._new = 0

    def wrote(self, count: int) -> None:
        """Note that `count` bytes were written; raises `OSError` if the disk could not take earlier ones."""
        self._new += count
        if self._new >= _BYTES and (self._request is None or self._request.done()):
            self._hand_over()

    def finish(self) -> None:
        """Return when the disk has all; raises `OSError` if it could not take it."""
        self._file.flush()
        self._hand_over().result()
        self._thread.shutdown()

    def _hand_over(self) -> "Future[None]":
        if self._request is not None:
            self._request.result()
        self._request, self._new = self._thread.submit(os.fdatasync, self._file.fileno()), 0
        return self._request
