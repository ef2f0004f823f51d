"""Geometry of the page's curves, intervals and bars, in the user units of an SVG; the templates draw it.

Points carry no copy of their values: the page's script turns coordinates back into values with the axes
of the plot, so a page of fifty runs stays small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_mathcpt.formats.run_folder import MetricRow

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 38.0
ROW_HEIGHT, LETTER_WIDTH, MOST_LETTERS = 26.0, 6.4, 34  # names beyond so many letters widen the plot
MOST_POINTS = 120  # of a curve of the page
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear map from values `low`..`high` to coordinates `start`..`end`, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Coordinate of `value`, to a hundredth of a unit."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """About five round values within the axis."""
        return round_values(self.low, self.high)


@dataclass(frozen=True)
class Line:
    """One run's curve: its index gives colour and dashes."""

    name: str
    index: int
    path: str
    end: Point


@dataclass(frozen=True)
class LinePlot:
    """Curves of several runs over one pair of axes."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True)
class Interval:
    """One row of an `IntervalPlot`: a value with its interval, and the text shown on hover.

    In shares when it is given, in user units, and with its height `y`, when it is placed.
    """

    name: str
    index: int
    low: float
    value: float
    high: float
    text: str
    y: float = 0.0


@dataclass(frozen=True)
class IntervalPlot:
    """Values with intervals, one below the other."""

    title: str
    x: Axis
    rows: tuple[Interval, ...]
    width: float
    height: float


@dataclass(frozen=True)
class Bar:
    """One bar of a `BarPlot`, upper left corner and size in user units, and the text shown on hover."""

    label: str
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class BarPlot:
    """A histogram; `x` says what its values are."""

    title: str
    x: str
    y: Axis
    bars: tuple[Bar, ...]
    width: float = WIDTH
    height: float = HEIGHT - 14  # no name of an axis below


def round_values(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, about `about` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_plot(
    title: str, curves: Sequence[tuple[str, int, Sequence[Point]]], *, from_zero: bool = True
) -> LinePlot | None:
    """Curves given as (name, index, points), tokens from zero on; None when there is not one point."""
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return None
    tokens = [point[0] for point in points]
    ends = _padded([0.0, *tokens], 0.0) if from_zero else _padded(tokens, 0.06)
    x = Axis(*ends, LEFT, WIDTH - RIGHT)
    y = Axis(*_padded([p[1] for p in points], 0.06), HEIGHT - BOTTOM, TOP)
    lines = (
        Line(name, index, _path(curve, x, y), (x.at(curve[-1][0]), y.at(curve[-1][1])))
        for name, index, curve in curves
        if curve
    )
    return LinePlot(title, x, y, tuple(lines))


def interval_plot(title: str, rows: Sequence[Interval], low: float, high: float) -> IntervalPlot:
    """Rows in shares over an axis from `low` to `high`."""
    letters = max((len(row.name) for row in rows), default=0)
    width = WIDTH + LETTER_WIDTH * max(0, letters - MOST_LETTERS)
    x = Axis(*_padded([low, high], 0.0), 14 + LETTER_WIDTH * letters, width - RIGHT)
    placed = tuple(
        replace(
            row,
            low=x.at(max(row.low, x.low)),
            value=x.at(row.value),
            high=x.at(min(row.high, x.high)),
            y=TOP + (number + 0.5) * ROW_HEIGHT,
        )
        for number, row in enumerate(rows)
    )
    return IntervalPlot(title, x, placed, width, TOP + len(rows) * ROW_HEIGHT + BOTTOM - 12)


def bar_plot(title: str, x: str, bars: Sequence[tuple[str, int, str]]) -> BarPlot:
    """Bars given as (label, height, text); of labels too long to stand side by side only some are shown."""
    y = Axis(*_padded([0.0, *(float(height) for _, height, _ in bars)], 0.0), HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    letters = max((len(label) for label, _, _ in bars), default=0)
    every = math.ceil((letters + 1) * LETTER_WIDTH / step)
    placed = (
        Bar(
            label if number % every == 0 else "",
            round(LEFT + (number + 0.08) * step, 2),
            y.at(height),
            round(0.84 * step, 2),
            round(y.start - y.at(height), 2),
            text,
        )
        for number, (label, height, text) in enumerate(bars)
    )
    return BarPlot(title, x, y, tuple(placed))


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * share
    return (low - room, high + room) if high > low else (low - 0.5, high + 0.5)


def _path(curve: Sequence[Point], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x.at(a):g},{y.at(b):g}" for a, b in curve)


def train_curve(rows: Sequence[MetricRow]) -> list[Point]:
    """Training loss against consumed tokens: at most `MOST_POINTS` means over equal numbers of rows."""
    points = [(float(row.consumed_tokens), row.loss) for row in rows if row.loss is not None]
    width = _thinning(points)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def validation_curves(rows: Sequence[MetricRow]) -> dict[str, list[Point]]:
    """Validation loss of each pool against consumed tokens; of many rows every n-th, and the last."""
    curves: dict[str, list[Point]] = {}
    for row in rows:
        for pool, loss in (row.validation or {}).items():
            curves.setdefault(pool, []).append((float(row.consumed_tokens), loss))
    return {pool: points[::-1][:: _thinning(points)][::-1] for pool, points in curves.items()}


def _thinning(points: Sequence[Point]) -> int:
    return -(-len(points) // MOST_POINTS) or 1
