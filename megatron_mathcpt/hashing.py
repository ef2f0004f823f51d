"""SHA-256 of values and files; imports next to nothing, as short programs wait for it."""

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
