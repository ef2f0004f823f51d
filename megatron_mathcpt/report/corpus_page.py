"""A finished corpus as one HTML page that needs nothing else, in the report's look."""

from collections.abc import Mapping
from typing import Any

from megatron_mathcpt.report.figures import bar_plot
from megatron_mathcpt.report.page import environment

_MOST_PLOTS = 24


def render_corpus(content: Mapping[str, Any]) -> str:
    """The page of the content that data/inspection_views.py gathers."""
    plots = [
        bar_plot(row["source"], row["unit"], [_bar(label, count, row) for label, count in row["bars"]])
        for row in content["lengths"][:_MOST_PLOTS]
    ]
    return environment().get_template("corpus.html.j2").render(title=content["name"], plots=plots, **content)


def _bar(label: str, count: int, row: Mapping[str, Any]) -> tuple[str, int, str]:
    """Label, height, and text on hover of a bar."""
    return label, count, f"{label} {row['unit']}: {count:,} ({count / row['total']:.1%})"
