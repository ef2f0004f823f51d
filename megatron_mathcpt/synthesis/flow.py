"""How many requests are in flight, and to which address: additive increase, multiplicative decrease.

As in TCP: doubling each round trip until the first overload, then one more a round trip; halved on 429, 503
and the like, once for all requests that were under way at that time.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

_SMOOTHING = 0.1  # weight of the newest reply in the mean time


class Endpoint:
    """One address, with its limit, what is in flight, and its mean time of a reply."""

    def __init__(self, url: str, initial: int, maximum: int) -> None:
        self.url = url
        self.limit = float(min(initial, maximum))
        self.in_flight = 0
        self.seconds = 0.0
        self.paused_until = 0.0
        self._maximum = maximum
        self._last_fall = 0.0
        self._starting = True

    def has_room(self, now: float) -> bool:
        """Whether one more request may be sent."""
        return self.in_flight < int(self.limit) and now >= self.paused_until

    def expected_seconds(self) -> float:
        """Time in which one more request would be answered, were they answered one after the other."""
        return (self.in_flight + 1) / self.limit * self.seconds

    def succeeded(self, started: float, now: float) -> None:
        """Learn from a reply: the limit rises if it was made use of."""
        weight = _SMOOTHING if self.seconds else 1.0
        self.seconds += weight * (now - started - self.seconds)
        if self.in_flight >= int(self.limit) - 1:
            self.limit = min(self._maximum, self.limit + (1.0 if self._starting else 1.0 / self.limit))

    def overloaded(self, started: float, now: float, pause_seconds: float) -> None:
        """Learn from an overload: halve, once for all requests sent before the fall; pause if told to."""
        self.paused_until = max(self.paused_until, now + pause_seconds)
        if started >= self._last_fall:
            self.limit = max(1.0, self.limit / 2)
            self._last_fall = now
            self._starting = False


class Flow:
    """Hands out places at the addresses of one server."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> Endpoint:
        """A place at the address that is expected to answer first; waits while all are full or paused."""
        while True:
            now = asyncio.get_running_loop().time()
            open_now = [endpoint for endpoint in self.endpoints if endpoint.has_room(now)]
            if open_now:
                endpoint = min(open_now, key=Endpoint.expected_seconds)
                endpoint.in_flight += 1
                return endpoint
            await self._wait(now)

    def give_back(self, endpoint: Endpoint) -> None:
        """Free a place, and wake who waits: two, since the limit may have risen."""
        endpoint.in_flight -= 1
        self._wake(2)

    async def _wait(self, now: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        pauses = [e.paused_until - now for e in self.endpoints if e.paused_until > now]
        timer = loop.call_later(min(pauses), self._wake, len(self._waiting)) if pauses else None
        try:
            await future
        finally:
            if timer:
                timer.cancel()

    def _wake(self, count: int) -> None:
        while self._waiting and count:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1
