"""Number formats; axes and paths."""

from collections.abc import Callable
from functools import partial

import pytest

from megatron_mathcpt.report.figures import Axis, interval_plot, line_plot, p_value, points, tokens

NUMBERS: dict[Callable[..., str], dict[float | None, str]] = {
    points: {0.12345: "12.3", None: "–"},
    p_value: {22 / 1024: "0.021", 1.0: "1", 2.1e-9: "2.1e−9", 1e-30: "< 1e−15", 3e-12: "3e−12"},
    partial(p_value, equals=True): {0.5: "= 0.5", 0.0: "< 1e−15"},
    partial(points, sign=True): {-0.051: "−5.1", 0.051: "+5.1", -1e-9: "0.0"},
    tokens: {63.0e9: "63.0 B", 999_600: "1.00 M", 999_400: "999 k", 99_960: "100 k"}
    | {14_700: "14.7 k", 17: "17", 104_857_600_000: "105 B"},
    partial(tokens, tick=True): {20_000: "20 k", 2.5e6: "2.5 M", 150e9: "150 B", 0.5: "0.5", 400.0: "400"},
}


@pytest.mark.parametrize("show", NUMBERS)
def test_numbers_are_formatted(show: Callable[..., str]) -> None:
    assert {value: show(value) for value in NUMBERS[show]} == NUMBERS[show]


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (0.0, 40000.0, [0, 10000, 20000, 30000, 40000]),
        (2.45, 3.3, [2.6, 2.8, 3.0, 3.2]),
        (-0.25, 0.62, [-0.2, 0.0, 0.2, 0.4, 0.6]),
        (7.0, 7.0001, [7.0, 7.00002, 7.00004, 7.00006, 7.00008, 7.0001]),
    ],
)
def test_an_axis_has_round_ticks_and_maps_its_ends(low: float, high: float, values: list[float]) -> None:
    axis = Axis(low, high, 200.0, 100.0)
    assert axis.ticks == pytest.approx(values)
    assert (axis.at(low), axis.at(low + (high - low) / 2), axis.at(high)) == (200.0, 150.0, 100.0)


def test_a_line_goes_through_its_values() -> None:
    curve = [(0.0, 4.0), (100.0, 2.0)]
    plot = line_plot("loss", [("a", 0, curve)])
    assert plot is not None
    # y spans 2..4 with 6 % of room at both ends: 1.88..4.12 over 212..12
    top, bottom = (212 - (value - 1.88) / 2.24 * 200 for value in (4.0, 2.0))
    assert plot.path(curve) == f"M0,{top:.2f}L100,{bottom:.2f}"
    # a single point has axes; without points there is no plot
    alone = line_plot("loss", [("a", 0, [(0.0, 3.0)])])
    assert alone is not None
    assert alone.y.low < 3.0 < alone.y.high
    assert line_plot("loss", [("a", 0, [])]) is None


def test_a_long_name_is_above_its_interval_and_a_short_one_left_of_it() -> None:
    names = ("middle_school_cpt_matched − middle_school_sft", "a − b")
    rows = [(name, 0, -0.2, 0.0, 0.2, "") for name in names]
    long, short = (interval_plot("t", shown, -0.2, 0.2) for shown in (rows, rows[1:]))
    assert (long.left, short.left) == (14, 14 + 6.8 * 5)
    assert (long.y.at(1) - long.y.at(0), short.y.at(1) - short.y.at(0)) == (41.6, 26)
    assert (long.x.at(-0.2), long.x.at(0.0), long.x.at(0.2)) == (0, 50, 100)  # percent
