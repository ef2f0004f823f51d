"""Loss against tokens, thinned to what a plot can show."""

from collections.abc import Sequence
from itertools import groupby

from megatron_mathcpt.formats.run_folder import MetricRow

Point = tuple[float, float]
MOST_POINTS = 120


def train_curve(rows: Sequence[MetricRow]) -> list[Point]:
    """Training loss against consumed tokens: at most `MOST_POINTS` means over equal numbers of rows."""
    points = [(row.consumed_tokens, row.loss) for row in rows if row.loss is not None]
    return _means([(float(tokens), loss) for tokens, loss in points])


def validation_curves(rows: Sequence[MetricRow]) -> dict[str, list[Point]]:
    """Validation loss of each pool against consumed tokens; of many rows every n-th, and the last."""
    curves: dict[str, list[Point]] = {}
    for row in rows:
        for pool, loss in (row.validation or {}).items():
            curves.setdefault(pool, []).append((float(row.consumed_tokens), loss))
    return {pool: _every(points) for pool, points in curves.items()}


def _means(points: Sequence[Point]) -> list[Point]:
    width = -(-len(points) // MOST_POINTS) or 1
    groups = (
        [point for _, point in group] for _, group in groupby(enumerate(points), lambda p: p[0] // width)
    )
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def _every(points: Sequence[Point]) -> list[Point]:
    width = -(-len(points) // MOST_POINTS) or 1
    return list(points[::-1][::width][::-1])
