"""Numbers as text."""

import pytest

from megatron_mathcpt.report import figures


@pytest.mark.parametrize(
    ("share", "sign", "text"),
    [
        (0.12345, False, "12.3"),
        (-0.051, True, "−5.1"),
        (0.051, True, "+5.1"),
        (-1e-9, True, "0.0"),
        (None, False, "–"),
    ],
)
def test_points(share: float | None, sign: bool, text: str) -> None:
    assert figures.points(share, sign=sign) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(22 / 1024, "0.021"), (1.0, "1"), (2.1e-9, "2.1e−9"), (1e-30, "< 1e−15"), (3e-12, "3e−12")],
)
def test_p_value(value: float, text: str) -> None:
    assert figures.p_value(value) == text


def test_p_value_with_its_relation() -> None:
    assert figures.p_value(0.5, equals=True) == "= 0.5"
    assert figures.p_value(0.0, equals=True) == "< 1e−15"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (63.0e9, "63.0 B"),
        (999_600, "1.00 M"),
        (999_400, "999 k"),
        (99_960, "100 k"),
        (14_700, "14.7 k"),
        (17, "17"),
        (104_857_600_000, "105 B"),
    ],
)
def test_tokens(count: float, text: str) -> None:
    assert figures.tokens(count) == text


def test_tokens_on_a_tick_are_short() -> None:
    assert [figures.tokens(count, tick=True) for count in (20_000, 2.5e6, 150e9)] == [
        "20 k",
        "2.5 M",
        "150 B",
    ]


@pytest.mark.parametrize(("value", "text"), [(12.34, "12.3 s"), (300, "5.0 min"), (7300, "2.0 h")])
def test_seconds(value: float, text: str) -> None:
    assert figures.seconds(value) == text
