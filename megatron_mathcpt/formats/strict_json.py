"""JSON from outside, in one place: bounded depth and size, every key once, numbers as they are written."""

import json
import re
from typing import Self

import orjson

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import JsonObject

MAX_DEPTH = 64  # what prints, validates or writes a value recursively can take several times that
MAX_VALUES = 1 << 21  # by commas and brackets, for each of which Python needs up to 200 bytes

# A number with a fraction or an exponent, where strings are left out.
_FRACTION = re.compile(rb"-?\d+[.eE][-+.\deE]*")


class Written(float):
    """A number that Python would write otherwise, 0.10 or 1E400: as text it has the digits of its file."""

    def __new__(cls, digits: str) -> Self:
        number = super().__new__(cls, digits)
        number.digits = digits
        return number

    digits: str

    def __str__(self) -> str:
        return self.digits


def decode_object(data: bytes) -> JsonObject:
    """The JSON object in `data`; raises `DataError` with what it is instead."""
    found = decode_json(data)
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, found {type(found).__name__}")
    return found


def decode_json(data: bytes) -> object:
    """The JSON value in `data`; raises `DataError` for damage, nesting, too many values, a repeated key."""
    if len(data) > MAX_VALUES < sum(map(data.count, (b",", b"[", b"{"))):
        raise DataError(f"more than {MAX_VALUES >> 20} million commas and brackets; split the record")
    try:
        found: object = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):
            raise DataError(_damage(data, error)) from error
        found = _exact(data)  # a number larger than a float
    strings, fractions, large = _measure(found)
    if not (fractions or large) and data.count(b'"') == 2 * strings:  # no quote is escaped, no key is lost
        return found
    plain = data.replace(b"\\\\", b"") if b"\\" in data else data
    escaped = plain.count(b'\\"') if plain is not data else 0
    # The fast parser keeps the last of two equal keys, so that strings are missing, and rounds integers of
    # more than 64 bits and fractions: only then the slow one, with the same result for anything else.
    if large or plain.count(b'"') - escaped != 2 * strings or (fractions and not _shortest(plain)):
        found = _exact(data)
    return found


def _shortest(plain: bytes) -> bool:
    """Whether Python would write all fractions as they are."""
    # Without escapes quotes are the ends of strings, and what is between them can be left out.
    numbers = _FRACTION.findall(b'"'.join(plain.replace(b'\\"', b"").split(b'"')[::2]))
    return all(repr(float(number)).encode() == number for number in numbers)


def _exact(data: bytes) -> object:
    try:
        found: object = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_fraction,
            parse_constant=_constant,
        )
        encode_json(found)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # of what the fast parser did not come to
        raise DataError(_damage(data, error)) from error
    return found


def encode_json(value: object) -> bytes:
    """One line of JSON; values without a type there, such as dates of Parquet, become text."""
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(value, default=str, ensure_ascii=False).encode()


def _plain(value: object) -> object:
    return orjson.Fragment(value.digits) if isinstance(value, Written) else str(value)


def _damage(data: bytes, error: Exception) -> str:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"not valid UTF-8 at byte {wrong.start} of the line"
    return f"not JSON ({error})"


def _measure(found: object) -> tuple[int, bool, bool]:
    """How many strings there are, keys included; whether there is a float, and one of a rounded integer."""
    strings, fractions, large, level = 0, False, False, [found]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for value in level:
            if isinstance(value, str):
                strings += 1
            elif isinstance(value, dict):
                strings += len(value)
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, float):
                fractions, large = True, large or abs(value) >= 1 << 63
        if not below:
            return strings, fractions, large
        level = below
    raise DataError(f"JSON nested more than {MAX_DEPTH} levels deep")


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise DataError(f"key '{key[:80]}' appears twice")
        found[key] = value
    return found


def _integer(digits: str) -> int | str:
    # As text beyond 64 bits, which is as far as it can be written again.
    short = len(digits) <= len(str(1 << 64)) and -(1 << 63) <= int(digits) < 1 << 64
    return int(digits) if short else digits


def _fraction(digits: str) -> float:
    number = float(digits)
    return number if repr(number) == digits else Written(digits)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
