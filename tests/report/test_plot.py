"""Axes, paths and the layout of the graph."""

import pytest

from megatron_mathcpt.report.figures import Axis, interval_plot, line_plot
from megatron_mathcpt.report.graph import Graph, Node


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


def test_a_line_starts_and_ends_where_its_values_lie() -> None:
    curve = [(0.0, 4.0), (100.0, 2.0)]
    plot = line_plot("loss", [("a", 0, curve)])
    assert plot is not None
    # y spans 2..4 with 6 % of room at both ends: 1.88..4.12 over 212..12
    top = 212 - (4.0 - 1.88) / 2.24 * 200
    bottom = 212 - (2.0 - 1.88) / 2.24 * 200
    assert plot.path(curve) == f"M46,{top:.2f}L426,{bottom:.2f}"


def test_one_point_alone_still_has_axes_and_none_no_plot() -> None:
    plot = line_plot("loss", [("a", 0, [(0.0, 3.0)])])
    assert plot is not None
    assert plot.y.low < 3.0 < plot.y.high
    assert line_plot("loss", [("a", 0, [])]) is None


def test_the_graph_has_a_column_a_depth_and_no_implied_edge() -> None:
    nodes = tuple(Node(name, ("run",), f"{name}/config.yaml") for name in ("corpus", "base", "base1"))
    graph = Graph(nodes, (("base", "base1"), ("corpus", "base"), ("corpus", "base1")))
    assert graph.depths == {"corpus": 0, "base": 1, "base1": 2}
    assert list(graph.direct_edges()) == [("base", "base1"), ("corpus", "base")]
    assert [x for x, _ in graph.places.values()] == [2.0, 180.0, 358.0]


def test_a_long_name_widens_the_plot_and_never_meets_an_interval() -> None:
    names = ("middle_school_cpt_matched − middle_school_sft", "a − b")
    plot = interval_plot("t", [(name, 0, -0.2, 0.0, 0.2, "") for name in names], -0.2, 0.2)
    assert plot.x.start == 14 + 6.4 * len(names[0])
    assert plot.width == pytest.approx(440 + 6.4 * (len(names[0]) - 34))
    assert plot.x.at(-0.2) >= plot.x.start
