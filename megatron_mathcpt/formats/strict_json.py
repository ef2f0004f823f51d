"""JSON from outside, in one place: bounded depth and size, every key once, integers as they are written."""

import json

import orjson

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import JsonObject

MAX_DEPTH = 64  # what prints, validates or writes a value recursively can take several times that
MAX_VALUES = 1 << 21  # by commas and brackets, for each of which Python needs up to 200 bytes


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
        raise DataError(_damage(data, error)) from error
    strings, large = _measure(found)
    escaped = data.replace(b"\\\\", b"").count(b'\\"') if b"\\" in data else 0
    # The fast parser keeps the last of two equal keys, so that strings are missing, and rounds integers
    # of more than 64 bits: only then the slow one, with the same result for anything else.
    if large or data.count(b'"') - escaped != 2 * strings:
        found = json.loads(data, object_pairs_hook=_object, parse_int=_integer)
    return found


def encode_json(value: object) -> bytes:
    """One line of JSON; values without a type there, such as dates of Parquet, become text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(value, default=str, ensure_ascii=False).encode()


def _damage(data: bytes, error: ValueError) -> str:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"not valid UTF-8 at byte {wrong.start} of the line"
    return f"not JSON ({error})"


def _measure(found: object) -> tuple[int, bool]:
    """How many strings there are, keys included, and whether a number may be a rounded integer."""
    strings, large, level = 0, False, [found]
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
                large |= abs(value) >= 1 << 63
        if not below:
            return strings, large
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
