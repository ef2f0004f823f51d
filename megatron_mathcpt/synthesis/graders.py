"""Threads in which conversations go on: grading may take three seconds, and no request must wait for it.

The standard library's executor wakes the event loop for every call, by a byte through a pipe; here one
wake-up brings back all that is done by then.
"""

import asyncio
import threading
from collections import deque
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from megatron_mathcpt.synthesis.method import Conversation, Outcome, Rejected, Reply, Request

Step = tuple[Request, ...] | Outcome  # what a conversation comes to: its next requests, or its outcome
_Job = tuple[Conversation, tuple[Reply, ...], "asyncio.Future[Step]"]


def advance(conversation: Conversation, replies: tuple[Reply, ...] | None) -> Step:
    """The conversation's next step; `replies` are None at its start."""
    try:
        return next(conversation) if replies is None else conversation.send(replies)
    except StopIteration as end:
        assert isinstance(end.value, Outcome)
        return end.value
    except Rejected as rejected:
        return rejected.outcome


class Graders:
    """Use as a context within a running event loop."""

    def __init__(self, threads: int = 2) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Step], Step | BaseException]] = deque()
        self._woken = False
        self._threads = [threading.Thread(target=self._work, name="grader") for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    async def advance(self, conversation: Conversation, replies: tuple[Reply, ...]) -> Step:
        """As `advance`, in a thread."""
        future: asyncio.Future[Step] = self._loop.create_future()
        self._jobs.put((conversation, replies, future))
        return await future

    def _work(self) -> None:
        while job := self._jobs.get():
            conversation, replies, future = job
            if future.cancelled():
                continue
            try:
                self._done.append((future, advance(conversation, replies)))
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                self._done.append((future, error))
            if not self._woken:
                self._woken = True
                self._loop.call_soon_threadsafe(self._bring)

    def _bring(self) -> None:
        self._woken = False  # before the first look: what comes later wakes again
        while self._done:
            future, result = self._done.popleft()
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
