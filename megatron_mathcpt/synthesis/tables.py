"""Summary and forecast as tables for the terminal."""

from typing import Any

from rich.table import Table

from megatron_mathcpt.synthesis.pilot import Forecast, Prediction


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """Counts and prices of each method, rejections by reason, the servers' word against mathematics."""
    ends = f", stopped at {summary['stopped']}" if summary["stopped"] else ""
    counts = Table(title=f"synthesis{ends}")
    for name in ("method", "outcomes", "accepted", "records", "tokens", "requests", "cost"):
        counts.add_column(name, justify="left" if name == "method" else "right")
    counts.add_column("cost a record", justify="right")
    counts.add_column("cost a 1,000 tokens", justify="right")
    reasons = Table("method", "rejected for", "outcomes", title="rejections")
    verdicts = Table("method", "verdicts", "outcomes", title="the server's word against mathematics")
    for name, row in summary["methods"].items():
        price, token_price = row["cost_per_record"], row["cost_per_token"]
        counts.add_row(
            name,
            *(f"{row[key]:,}" for key in ("outcomes", "accepted", "records", "tokens", "requests")),
            f"{row['cost']:.4f}",
            "-" if price is None else f"{price:.6f}",
            "-" if token_price is None else f"{1000 * token_price:.6f}",
        )
        for reason, count in row["rejected"].items():
            reasons.add_row(name, reason, f"{count:,}")
        for verdict, count in row["verdicts"].items():
            verdicts.add_row(name, verdict, f"{count:,}")
    return [table for table in (counts, reasons, verdicts) if table.row_count]


def forecast_table(forecasts: list[Forecast]) -> Table:
    """What the whole run will take, with 95 % intervals."""
    table = Table(title="forecast of the whole run (95 % intervals)")
    for name in ("method", "seeds", "requests", "tokens", "cost", "records", "record tokens", "hours"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in forecasts:
        table.add_row(
            f"{row.method} ({row.pilot_seeds} seeds run)",
            f"{row.seeds:,}",
            _cell(row.requests, ",.0f"),
            _cell(row.tokens, ",.0f"),
            _cell(row.cost, ",.2f"),
            _cell(row.accepted_records, ",.0f"),
            _cell(row.accepted_tokens, ",.0f"),
            _cell(row.seconds, ",.2f", 1 / 3600),
        )
    return table


def _cell(value: Prediction, form: str, scale: float = 1) -> str:
    low, high = (format(scale * end, form) for end in (value.low, value.high))
    return f"{format(scale * value.total, form)}\n{low} to {high}"
