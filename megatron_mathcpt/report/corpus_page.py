"""A finished corpus as one HTML page that needs nothing else, in the report's look."""

from collections.abc import Mapping
from typing import Any

from megatron_mathcpt.report.page import environment
from megatron_mathcpt.report.plot import BarPlot, bar_plot


def render_corpus(content: Mapping[str, Any]) -> str:
    """The page of the content that data/inspection/content.py gathers."""
    rows = content["lengths"][: content["most_plots"]]
    plots = [
        (index, plot)
        for index, row in enumerate(rows)
        for plot in (
            _plot(row["source"], "tokens a document", row["tokens"]),
            *([_plot(row["source"], "steps a problem", row["steps"])] if "steps" in row else []),
        )
    ]
    return environment().get_template("corpus.html.j2").render(title=content["name"], plots=plots, **content)


def _plot(source: str, unit: str, found: Mapping[str, Any]) -> BarPlot:
    bars = [
        (
            _tick(bar["low"]) if unit.startswith("tokens") else bar["label"],
            bar["count"],
            f"{bar['label']} {unit}: {bar['count']:,} ({bar['count'] / found['total']:.1%})",
        )
        for bar in found["bars"]
    ]
    return bar_plot(source, unit, bars)


def _tick(power: int) -> str:
    """A power of two in few letters, as in `512` and `4k`, where k is 1024."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if power >= size:
            return f"{power // size}{unit}"
    return str(power)
