"""Progress of a run, told from time to time: outcomes by reason, rate, cost so far, time left."""

import time
from collections import Counter

from megatron_mathcpt.log import get_logger
from megatron_mathcpt.synthesis.budget import Meter

_LOG = get_logger(__name__)
_SHOWN_REASONS = 4


class Progress:
    """Counts what this process did; `total` is what one method has to do."""

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self.begin("", 0)

    def begin(self, method: str, total: int) -> None:
        """Start counting for one method."""
        self._method, self._total = method, total
        self._started = self._told = time.monotonic()
        self._spent_before: int | None = None
        self._reasons: Counter[str] = Counter()
        self._done = 0
        self._tokens = 0

    def finished(self, reason: str | None, tokens: int, meter: Meter) -> None:
        """Count one outcome."""
        self._done += 1
        self._tokens += tokens
        if reason:
            self._reasons[reason] += 1
        if self._spent_before is None:
            self._spent_before = meter.tokens
        now = time.monotonic()
        if now - self._told >= self._every:
            self._told = now
            self._tell(now, meter)

    def _tell(self, now: float, meter: Meter) -> None:
        seconds = now - self._started
        rejected = sum(self._reasons.values())
        reasons = ", ".join(f"{name} {count}" for name, count in self._reasons.most_common(_SHOWN_REASONS))
        _LOG.info(
            "%s: %d of %d, accepted %d, rejected %d%s; %.1f outcomes/s, %.0f tokens/s, cost %.2f, %s left",
            self._method,
            self._done,
            self._total,
            self._done - rejected,
            rejected,
            f" ({reasons})" if reasons else "",
            self._done / seconds,
            (meter.tokens - (self._spent_before or 0)) / seconds,
            meter.cost,
            _duration((self._total - self._done) * seconds / self._done),
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
