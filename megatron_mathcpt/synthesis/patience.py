"""Time-outs for many requests by one timer, which looks at all that are under way from time to time.

aiohttp sets and drops three timers a request, a tenth of the CPU time that a request takes.
"""

import asyncio
from types import TracebackType
from typing import Self

_LONGEST_LOOK_SECONDS = 1.0  # and a tenth of the shortest time-out: a request may last so much longer


class Patience:
    """Ends what lasts longer than `total_seconds`, or hears nothing for `read_seconds`."""

    def __init__(self, read_seconds: float, total_seconds: float) -> None:
        self._read, self._total = read_seconds, total_seconds
        self._every = min(_LONGEST_LOOK_SECONDS, read_seconds / 10, total_seconds / 10)
        self._timer: asyncio.TimerHandle | None = None
        self.watches: set[Watch] = set()

    def watch(self) -> "Watch":
        """A context for one request; raises `TimeoutError` where patience ends."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(self._every, self._look)
        return Watch(self, loop.time())

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for watch in self.watches:
            if not watch.ended and (now - watch.began > self._total or now - watch.heard > self._read):
                watch.end()
        self._timer = loop.call_later(self._every, self._look) if self.watches else None


class Watch:
    """One request under way; `heard` is when its last bytes came."""

    __slots__ = ("_patience", "_task", "began", "ended", "heard")

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self.began = self.heard = now
        self.ended = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._patience.watches.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patience.watches.discard(self)
        # As asyncio.timeout does: a cancellation from elsewhere goes on.
        if self.ended and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """Stop the request where it waits."""
        self.ended = True
        self._task.cancel()
