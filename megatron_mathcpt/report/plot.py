"""Geometry of the page's plots, in the user units of an SVG; the templates draw it.

Points carry no copy of their values: the page's script turns coordinates back into values with the `domain`
and `area` of the plot, so a page of fifty runs stays small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_mathcpt.report.curves import Point
from megatron_mathcpt.report.graph import Graph

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 38.0
ROW_HEIGHT, LETTER_WIDTH, MOST_LETTERS = 26.0, 6.4, 34  # names beyond so many letters widen the plot
BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP = 132.0, 44.0, 46.0, 14.0


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
    """One row of an `IntervalPlot`: a value with its interval, in user units, and the text shown on hover."""

    name: str
    index: int
    y: float
    low: float
    value: float
    high: float
    text: str


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


@dataclass(frozen=True)
class Box:
    """One folder of the graph: upper left corner, and what is written in it."""

    name: str
    kinds: str
    config: str
    x: float
    y: float


@dataclass(frozen=True)
class GraphPlot:
    """Boxes in columns by depth, joined by curves (SVG path strings)."""

    boxes: tuple[Box, ...]
    paths: tuple[str, ...]
    width: float
    height: float
    box_width: float = BOX_WIDTH
    box_height: float = BOX_HEIGHT


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


def interval_plot(
    title: str, rows: Sequence[tuple[str, int, float, float, float, str]], low: float, high: float
) -> IntervalPlot:
    """Rows given as (name, index, low, value, high, text) over an axis from `low` to `high`."""
    letters = max((len(row[0]) for row in rows), default=0)
    width = WIDTH + LETTER_WIDTH * max(0, letters - MOST_LETTERS)
    x = Axis(*_padded([low, high], 0.0), 14 + LETTER_WIDTH * letters, width - RIGHT)
    placed = tuple(
        Interval(
            name,
            index,
            TOP + (number + 0.5) * ROW_HEIGHT,
            x.at(max(lower, x.low)),
            x.at(value),
            x.at(min(upper, x.high)),
            text,
        )
        for number, (name, index, lower, value, upper, text) in enumerate(rows)
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


def graph_plot(graph: Graph) -> GraphPlot:
    """Boxes of a column below one another in the graph's order, columns centred."""
    depths = graph.depths()
    columns: dict[int, list[str]] = {}
    for node in graph.nodes:
        columns.setdefault(depths[node.name], []).append(node.name)
    height = max((len(names) for names in columns.values()), default=0) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP
    places = {
        name: (
            2 + depth * (BOX_WIDTH + COLUMN_GAP),
            (height - len(names) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP) / 2 + row * (BOX_HEIGHT + ROW_GAP),
        )
        for depth, names in columns.items()
        for row, name in enumerate(names)
    }
    boxes = tuple(
        Box(node.name, " · ".join(node.kinds), node.config, *places[node.name]) for node in graph.nodes
    )
    paths = tuple(_edge(places[a], places[b]) for a, b in graph.direct_edges())
    width = len(columns) * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + 4
    return GraphPlot(boxes, paths, width, height)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * share
    return (low - room, high + room) if high > low else (low - 0.5, high + 0.5)


def _path(curve: Sequence[Point], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x.at(a):g},{y.at(b):g}" for a, b in curve)


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x1, y1 = end[0], end[1] + BOX_HEIGHT / 2
    middle = (x0 + x1) / 2
    return f"M{x0:g},{y0:g}C{middle:g},{y0:g} {middle:g},{y1:g} {x1:g},{y1:g}"
