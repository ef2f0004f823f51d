"""Tables at 80 columns, as where the output is piped, with numbers as large as a whole study's."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from megatron_mathcpt.synthesis.pilot import Forecast, Prediction
from megatron_mathcpt.synthesis.tables import forecast_tables, summary_tables

BIG = 13_900_123_456
ROW: dict[str, Any] = {
    "outcomes": 14_000_001,
    "accepted": 13_999_002,
    "records": 27_999_003,
    "tokens": BIG,
    "requests": 56_000_004,
    "cost": 123_456.789,
    "cost_per_record": 0.004409,
    "cost_per_token": 8.882e-6,
    "rejected": {"teacher and mathematics disagree": 1_234_567, "expected <check> with " * 4: 5},
    "verdicts": {"question_1: server correct, mathematics ungraded": 7_654_321},
}


def shown(tables: list[Table]) -> str:
    console = Console(width=80, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_no_number_of_a_summary_is_cut() -> None:
    names = ("response_diversification", "retrospective_enhancement")
    text = shown(summary_tables({"stopped": "maximum_cost of 1000", "methods": dict.fromkeys(names, ROW)}))
    assert "…" not in text
    for number in (
        *("14,000,001", "13,999,002", "27,999,003", "13,900,123,456", "56,000,004", "123,456.7890"),
        *("0.004409", "0.008882", "1,234,567", "7,654,321"),
    ):
        assert text.count(number) == 2, number
    assert text.count("retrospective_enhancement") == 5  # a line each: counts, price, two reasons, verdict
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("high", [BIG, float("inf")])
def test_no_number_of_a_forecast_is_cut(high: float) -> None:
    most = Prediction(BIG, 12_345_678_901, high)
    forecast = Forecast("retrospective_enhancement", 60, 14_000_000, *[most] * 6)
    text = shown(forecast_tables([forecast]))
    assert "14,000,000 seeds, predicted from 60" in " ".join(text.split())
    assert text.count("13,900,123,456") == (10 if high == BIG else 5)
    assert text.count("3,861,145.40") == (2 if high == BIG else 1)  # hours: seconds / 3600
    assert "…" not in text
