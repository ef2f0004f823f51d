"""Summary and forecast as tables for a terminal of 80 columns: text is folded to make room, numbers never."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from megatron_mathcpt.synthesis.pilot import Forecast, Prediction


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """Counts and prices of each method, rejections by reason, the servers' word against mathematics."""
    ends = f", stopped at {summary['stopped']}" if summary["stopped"] else ""
    counts = _table(f"synthesis{ends}", ("method",), ("outcomes", "accepted", "records", "tokens"))
    prices = _table("prices", ("method",), ("requests", "cost", "a record", "1,000 tokens"))
    reasons = _table("rejections", ("method", "rejected for"), ("outcomes",))
    verdicts = _table("the server's word against mathematics", ("method", "verdicts"), ("outcomes",))
    for name, row in summary["methods"].items():
        price, token_price = row["cost_per_record"], row["cost_per_token"]
        counts.add_row(name, *(f"{row[key]:,}" for key in ("outcomes", "accepted", "records", "tokens")))
        prices.add_row(
            name,
            f"{row['requests']:,}",
            f"{row['cost']:,.4f}",
            "-" if price is None else f"{price:.6f}",
            "-" if token_price is None else f"{1000 * token_price:.6f}",
        )
        for reason, count in row["rejected"].items():
            reasons.add_row(name, reason, f"{count:,}")
        for verdict, count in row["verdicts"].items():
            verdicts.add_row(name, verdict, f"{count:,}")
    return [table for table in (counts, prices, reasons, verdicts) if table.row_count]


def forecast_tables(forecasts: list[Forecast]) -> list[Table]:
    """What the whole run will take, a table for each method, with 95 % intervals."""
    return [_forecast_table(forecast) for forecast in forecasts]


def _forecast_table(forecast: Forecast) -> Table:
    seeds = f"{forecast.seeds:,} seeds, predicted from {forecast.pilot_seeds:,}"
    table = _table(f"{forecast.method}: {seeds}", ("the whole run",), ("expected", "95 % from", "to"))
    for name, value, form, scale in (
        ("requests", forecast.requests, ",.0f", 1.0),
        ("tokens", forecast.tokens, ",.0f", 1.0),
        ("cost", forecast.cost, ",.2f", 1.0),
        ("accepted records", forecast.accepted_records, ",.0f", 1.0),
        ("accepted tokens", forecast.accepted_tokens, ",.0f", 1.0),
        ("hours", forecast.seconds, ",.2f", 1 / 3600),
    ):
        table.add_row(name, *_cells(value, form, scale))
    return table


def _cells(value: Prediction, form: str, scale: float) -> tuple[str, str, str]:
    total, low, high = (format(scale * number, form) for number in (value.total, value.low, value.high))
    return total, low, high


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
