"""JSON lines that hold some bytes, without parsing the others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.errors import ConfigError

_BLOCK_BYTES = 8 << 20


def json_bytes(text: str) -> bytes:
    """`text` as it stands in our JSON files, in quotes; raises `ConfigError` if it cannot stand there."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError as error:
        raise ConfigError(f"{text!r}: not valid UTF-8, so no record holds it") from error


def scan_rows(
    path: Path, needle: bytes = b"", any_case: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 0 and content of each line that holds `needle`; `any_case`: its ASCII letters in either."""
    fold = bytes.lower if any_case else bytes
    sought = fold(needle)
    number, rest = 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            end = block.rfind(b"\n") + 1
            if not end:
                rest += block
                continue
            whole, rest = rest + block[:end], block[end:]
            if sought in fold(whole):
                for offset, line in enumerate(whole.split(b"\n")[:-1]):
                    if sought in fold(line):
                        yield number + offset, orjson.loads(line)
            number += whole.count(b"\n")
