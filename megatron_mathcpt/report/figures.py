"""Format numbers as text, and lay out plots that templates draw: across in percent, down in pixels.

So a plot fills any width, with type of one size. The page's script converts coordinates back to values, so
the page needs no second copy of the data, and stays small with fifty runs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

MISSING = "–"


def points(share: float | None, *, sign: bool = False) -> str:
    """Format a share of 1 in percent; with `sign`, a difference of shares in percentage points."""
    if share is None:
        return MISSING
    text = f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", "−")


def significant(value: float | None) -> str:
    """Format with two significant digits, as in `0.021` and `1.5e−6`."""
    return MISSING if value is None else f"{value:.2g}".replace("e-0", "e-").replace("-", "−")


def p_value(value: float, *, equals: bool = False) -> str:
    """Format as `significant` does; `equals` adds the relation, as in `= 0.021` or `< 1e−15`."""
    if value < 1e-15:
        return "< 1e−15"
    return f"= {significant(value)}" if equals else significant(value)


def tokens(count: float | None, *, tick: bool = False) -> str:
    """Format with three significant digits and k, M, B or T; a `tick` has no trailing zeros."""
    if count is None:
        return MISSING
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * size:  # 999,600 rounds to 1.00 M, not to 1000 k
            value = count / size
            return f"{value:.3g} {unit}" if tick or value >= 99.95 else f"{value:#.3g} {unit}"
    return f"{count:g}" if tick else f"{count:.0f}"


def begin_token(text: str | None) -> str:
    """The token that texts begin with; none if it is empty, unknown if it is None."""
    return MISSING if text is None else text or "none"


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Format with `digits` decimals; with `sign`, a difference."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−")


NARROW, HEIGHT = 260.0, 250.0  # pixels between the axes on a phone, and of a plot from top to bottom
LEFT, TOP, BOTTOM = 46.0, 12.0, 38.0  # room for tick labels and axis names
ROW_HEIGHT, LETTER_WIDTH, MAX_LETTERS = 26.0, 6.8, 20  # a longer name is above its interval
Point = tuple[float, float]
Curve = tuple[str, int, Sequence[Point]]  # name, index of colour and dashes, points
Interval = tuple[str, int, float, float, float, str]  # name, colour, low end, value, high end, text on hover
Bar = tuple[str, float, str]  # label, height, text on hover
TwoBars = tuple[str, float, float, str]  # label, height of the first and of the second, text on hover


@dataclass(frozen=True)
class Axis:
    """Linear map from values `low`..`high` to coordinates `start`..`end`."""

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
        """About five values within the axis, multiples of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        # The tolerances keep a tick that rounding moved just outside of an end.
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Plot:
    """Rows of one kind over a pair of axes."""

    title: str
    rows: Sequence[Curve | Interval | Bar | TwoBars]
    x: Axis
    y: Axis
    left: float = LEFT
    height: float = HEIGHT
    unit: str = ""

    def path(self, curve: Iterable[Point]) -> str:
        """SVG path of a curve."""
        return "M" + "L".join(f"{self.x.at(a):g},{self.y.at(b):g}" for a, b in curve)


def line_plot(title: str, curves: Iterable[Curve], *, from_zero: bool = True) -> Plot | None:
    """Plot curves against tokens; None if no curve has a point."""
    rows = [curve for curve in curves if curve[2]]
    if not rows:
        return None
    across, up = zip(*(point for _, _, curve in rows for point in curve), strict=True)
    ends = _padded([0.0, *across], 0.0) if from_zero else _padded(across, 0.06)
    return Plot(title, rows, Axis(*ends, 0, 100), Axis(*_padded(up, 0.06), HEIGHT - BOTTOM, TOP))


def interval_plot(title: str, rows: Sequence[Interval], low: float, high: float) -> Plot:
    """Plot a value with its interval in each row, on an axis from `low` to `high`."""
    letters = max(len(name) for name, *_ in rows)
    left, height = 14 + LETTER_WIDTH * letters, ROW_HEIGHT
    if letters > MAX_LETTERS:
        left, height = 14, 1.6 * ROW_HEIGHT
    y = Axis(0, len(rows), TOP, TOP + len(rows) * height)
    return Plot(title, rows, Axis(*_padded([low, high], 0.0), 0, 100), y, left, y.end + BOTTOM - 12)


def bar_plot(title: str, unit: str, bars: Sequence[Bar]) -> Plot:
    """Plot bars; of labels too long to fit next to each other, every n-th is shown."""
    x = Axis(0, max(1, len(bars)), 0, 100)
    y = Axis(*_padded([0.0, *(float(height) for _, height, _ in bars)], 0.0), HEIGHT - BOTTOM, TOP)
    letters = max((len(label) for label, _, _ in bars), default=0)
    every = math.ceil((letters + 1) * LETTER_WIDTH * 100 / (NARROW * x.at(1)))
    rows = [("" if number % every else bar[0], *bar[1:]) for number, bar in enumerate(bars)]
    return Plot(title, rows, x, y, height=HEIGHT - 14, unit=unit)  # the x axis has no name


def pair_plot(title: str, unit: str, pairs: Sequence[TwoBars]) -> Plot:
    """Plot two bars next to each other for each label, as `bar_plot` does one."""
    plot = bar_plot(title, unit, [(label, max(first, second), text) for label, first, second, text in pairs])
    rows = [(str(bar[0]), *pair[1:]) for bar, pair in zip(plot.rows, pairs, strict=True)]
    return replace(plot, rows=rows)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * share
    return (low - room, high + room) if high > low else (low - 0.5, high + 0.5)
