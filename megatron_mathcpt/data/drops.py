"""Why a document is dropped: a named reason, what was measured and the limit that it broke."""

from typing import NamedTuple


class Drop(NamedTuple):
    """`measured` and `limit` are None where the reason says all."""

    reason: str
    measured: float | None = None
    limit: float | None = None


def above(reason: str, measured: float, limit: float | None) -> Drop | None:
    """A drop if `measured` is above `limit`; None turns the rule off."""
    return Drop(reason, measured, limit) if limit is not None and measured > limit else None


def below(reason: str, measured: float, limit: float | None) -> Drop | None:
    """A drop if `measured` is below `limit`; None turns the rule off."""
    return Drop(reason, measured, limit) if limit is not None and measured < limit else None
