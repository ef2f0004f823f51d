"""The results as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_mathcpt.report import format as formats
from megatron_mathcpt.report.compare import ALPHA, POOLED
from megatron_mathcpt.report.graph import Graph
from megatron_mathcpt.report.plot import IntervalPlot, LinePlot, graph_plot, interval_plot, line_plot

MOST_INTERVAL_ROWS = 40


def render(report: Mapping[str, Any], graph: Graph, title: str, up: str) -> str:
    """`index.html` for the content of report.json; `up` leads from the page to the results."""
    results = report["results"]
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            title=title,
            up=up,
            alpha=ALPHA,
            pooled=POOLED,
            results=results,
            timings=report["timings"],
            versions=report["versions"],
            index={name: number for number, name in enumerate(results["runs"])},
            pools=_pools(results),
            score_plots=_score_plots(results),
            token_plot=_token_plot(results["runs"]),
            many_comparisons=len(results["comparisons"]) > MOST_INTERVAL_ROWS,
            difference_plot=_difference_plot(results["comparisons"]),
            loss_plots=_loss_plots(results["runs"]),
            graph=graph_plot(graph),
        )
    )


def environment() -> Environment:
    """The templates of the report's pages, with our filters."""
    found = Environment(
        loader=PackageLoader("megatron_mathcpt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "points": formats.points,
        "significant": formats.significant,
        "p_value": formats.p_value,
        "tokens": formats.tokens,
        "seconds": formats.seconds,
        "number": formats.number,
        "lower_first": lambda text: text[:1].lower() + text[1:],
    }
    return found


def _pools(results: Mapping[str, Any]) -> list[str]:
    runs = results["runs"].values()
    return sorted({pool for run in runs for pool in (*run["tokens_by_source"], *run["final_validation"])})


def _score_plots(results: Mapping[str, Any]) -> list[IntervalPlot]:
    """One plot a task: every run's accuracy with its interval, all on one scale."""
    runs = results["runs"]
    scores = [score for run in runs.values() for score in run["scores"].values()]
    top = max((score["high"] for score in scores), default=0.0)
    plots = []
    for task in results["tasks"]:
        rows = [
            (name, index, s["low"], s["accuracy"], s["high"], _score_text(name, s))
            for index, (name, run) in enumerate(runs.items())
            if (s := run["scores"].get(task))
        ]
        plots.append(interval_plot(task, rows, 0.0, top))
    return plots


def _score_text(name: str, score: Mapping[str, Any]) -> str:
    interval = f"{formats.points(score['low'])} to {formats.points(score['high'])}"
    return (
        f"{name}: {formats.points(score['accuracy'])} % ({score['correct']} of {score['n']}), 95% {interval}"
    )


def _difference_plot(comparisons: Sequence[Mapping[str, Any]]) -> IntervalPlot | None:
    """Every comparison's difference with its interval; of too many, the pooled ones."""
    shown = comparisons if len(comparisons) <= MOST_INTERVAL_ROWS else _only_pooled(comparisons)
    if not shown:
        return None
    several = len({(row["second"], row["first"]) for row in shown}) > 1
    colour = {"better": 3, "worse": 4, "not distinguishable": 0}
    rows = [
        (
            f"{row['second']} − {row['first']}" if several else row["task"],
            colour[row["verdict"]],
            row["low"],
            row["difference"],
            row["high"],
            row["sentence"],
        )
        for row in shown
    ]
    low = min(0.0, *(row["low"] for row in shown))
    high = max(0.0, *(row["high"] for row in shown))
    return interval_plot("difference, percentage points", rows, low, high)


def _only_pooled(comparisons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in comparisons if row["task"] == POOLED]


def _token_plot(runs: Mapping[str, Any]) -> LinePlot | None:
    """Each run's accuracy over all tasks against the tokens of mathematics it and its parents saw."""
    points = [
        (name, index, [(float(run["mathematics_tokens"]), 100 * run["total"]["accuracy"])])
        for index, (name, run) in enumerate(runs.items())
        if run["total"]
    ]
    return line_plot("accuracy, all tasks", points, from_zero=False)


def _loss_plots(runs: Mapping[str, Any]) -> list[LinePlot]:
    pools = dict.fromkeys(pool for run in runs.values() for pool in run["validation_loss"])
    curves = {"training loss": [(n, i, run["train_loss"]) for i, (n, run) in enumerate(runs.items())]}
    for pool in pools:
        curves[f"validation loss, {pool}"] = [
            (n, i, run["validation_loss"].get(pool, [])) for i, (n, run) in enumerate(runs.items())
        ]
    return [plot for title, lines in curves.items() if (plot := line_plot(title, lines))]
