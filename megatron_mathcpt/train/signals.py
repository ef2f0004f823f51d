"""Signals that ask for a stop at the next step boundary; the handler only sets a flag."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """True once one of the stop signals came; both are in use by schedulers and launchers."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Take over the stop signals of this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
