"""Numbers as text."""

from collections.abc import Callable

import pytest

from megatron_mathcpt.report import figures
from megatron_mathcpt.report.figures import p_value, points, seconds, tokens


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (points, 0.12345, "12.3"),
        (points, None, "–"),
        (p_value, 22 / 1024, "0.021"),
        (p_value, 1.0, "1"),
        (p_value, 2.1e-9, "2.1e−9"),
        (p_value, 1e-30, "< 1e−15"),
        (p_value, 3e-12, "3e−12"),
        (tokens, 63.0e9, "63.0 B"),
        (tokens, 999_600, "1.00 M"),
        (tokens, 999_400, "999 k"),
        (tokens, 99_960, "100 k"),
        (tokens, 14_700, "14.7 k"),
        (tokens, 17, "17"),
        (tokens, 104_857_600_000, "105 B"),
        (seconds, 12.34, "12.3 s"),
        (seconds, 300, "5.0 min"),
        (seconds, 7300, "2.0 h"),
    ],
)
def test_a_number_in_a_table(show: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert show(value) == text


def test_signs_relations_and_ticks() -> None:
    assert [points(share, sign=True) for share in (-0.051, 0.051, -1e-9)] == ["−5.1", "+5.1", "0.0"]
    assert [p_value(value, equals=True) for value in (0.5, 0.0)] == ["= 0.5", "< 1e−15"]
    ticks = [figures.tokens(count, tick=True) for count in (20_000, 2.5e6, 150e9)]
    assert ticks == ["20 k", "2.5 M", "150 B"]
