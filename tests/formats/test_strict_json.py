"""JSON is taken as it is written, or refused by name; nothing is taken in part."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import strict_json
from megatron_mathcpt.formats.strict_json import MAX_DEPTH, decode_json, decode_object, encode_json

TEXTS = st.text(st.sampled_from('ab"\\/{}[]:, \n\té中😀\u2028'), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXTS, v, max_size=4))
FINITE = VALUES.filter(lambda value: "Infinity" not in json.dumps(value))


@given(FINITE, st.booleans(), st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_every_value_is_read_as_pythons_own_reader_does(
    value: Any, ascii_only: bool, separators: tuple[str, str]
) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    assert decode_json(data.encode()) == json.loads(data)


@given(st.dictionaries(TEXTS, SCALARS, min_size=1, max_size=4), TEXTS, st.booleans(), st.booleans())
def test_a_key_that_is_there_twice_is_named_in_any_spelling_and_depth(
    row: dict[str, Any], key: str, inside: bool, escaped: bool
) -> None:
    row = {
        key: 1,
        **{name: value for name, value in row.items() if value not in (float("inf"), -float("inf"))},
    }
    again = "".join(f"\\u{ord(c):04x}" for c in key) if escaped and key.isascii() else json.dumps(key)[1:-1]
    line = json.dumps(row)[:-1] + f', "{again}" : [2]}}'
    with pytest.raises(DataError, match="appears twice"):
        decode_json((f'{{"meta": [{line}]}}' if inside else line).encode())


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"a": 1267650600228229401496703205375}', "1267650600228229401496703205375"),
        (b'{"a": -9223372036854775809}', "-9223372036854775809"),
        (b'{"a": 18446744073709551615}', 18446744073709551615),
        (b'{"a": ' + b"9" * 300 + b"}", "9" * 300),
        (b'{"a": 1e30}', 1e30),
        (b'{"a": ' + b"9" * 5000 + b"}", "9" * 5000),
    ],
)
def test_an_integer_of_any_size_keeps_its_digits(data: bytes, found: object) -> None:
    assert decode_object(data) == {"a": found}


@pytest.mark.parametrize(
    "digits", ["0.10", "1.50", "1E400", "-1e400", "0.1000000000000000055", "-0.0", "1e5", "0.1", "2.50E-3"]
)
def test_a_fraction_keeps_its_digits_and_is_written_again_with_them(digits: str) -> None:
    line = f'{{"a":{digits},"b":[{{"c":{digits}}}],"text":"0.1, \\\\ \\"{digits}\\""}}'.encode()
    found = decode_object(line)
    assert str(found["a"]) == str(found["b"][0]["c"]) == digits
    assert found["a"] == float(digits)
    assert encode_json(found) == line


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, ""),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested more than 64"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested more than 64"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"{}," * (1 << 20) + b"{}]", "more than 2 million"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1e999, "b": NaN}', "NaN is no JSON"),
        (b'{"a": 1e999, "b": "\\ud800"}', "not JSON"),
        (b'{"a": 1e999, "b": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "not JSON"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'"\\ud800"', "not JSON"),
    ],
)
def test_depth_and_number_of_values_are_bounded(data: bytes, reason: str) -> None:
    if not reason:
        assert json.loads(data) == decode_json(data)
        return
    with pytest.raises(DataError, match=reason):
        decode_json(data)


def test_the_slow_reader_is_for_rare_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of LaTeX with escaped quotes and backslashes is not parsed twice."""
    line = json.dumps({"text": '\\frac{"a"}{b} \\\\ "', "meta": {"text": "\\"}, "n": [1.5, 2**53]})
    monkeypatch.setattr(strict_json, "json", None)
    assert decode_object(line.encode()) == json.loads(line)
