"""Accepted records as the data tools read them, rejections beside them, and the counts of both."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

ACCEPTED, REJECTED = "accepted.jsonl", "rejected.jsonl"


class MethodWriter:
    """Writes one method's outcomes in order of the seeds, up to a cap of accepted tokens.

    The cap ends the output before the first seed whose records would go over it, so that methods capped
    alike differ by less than one seed's records.
    """

    def __init__(self, folder: Path, maximum_tokens: int | None = None) -> None:
        self._folder = folder
        self._maximum = maximum_tokens
        self._stack = ExitStack()
        self.outcomes = 0
        self.records = 0
        self.tokens = 0
        self.reasons: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.capped = False

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._accepted = self._stack.enter_context((self._folder / ACCEPTED).open("wb"))
        self._rejected = self._stack.enter_context((self._folder / REJECTED).open("wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, seed: str, sample: int, tokens: int, row: dict[str, Any]) -> bool:
        """Write one outcome; False when the cap is reached, and then nothing was written."""
        if self._maximum is not None and self.tokens + tokens > self._maximum:
            self.capped = True
            return False
        self.outcomes += 1
        self.tokens += tokens
        for name, check in row["checks"].items():
            claim = row["claims"].get(name, "-")
            self.verdicts[f"{name}: server {claim}, mathematics {check['verdict']}"] += 1
        for record in row["records"]:
            self.records += 1
            self._accepted.write(orjson.dumps(record) + b"\n")
        if not row["records"]:
            self.reasons[row["reason"]] += 1
            rest = {key: value for key, value in row.items() if key != "records"}
            self._rejected.write(orjson.dumps({"seed": seed, "sample": sample, **rest}) + b"\n")
        return True

    def counts(self) -> dict[str, Any]:
        """What was written; `verdicts` sets the servers' word against mathematics."""
        return {
            "outcomes": self.outcomes,
            "accepted": self.outcomes - sum(self.reasons.values()),
            "rejected": dict(sorted(self.reasons.items())),
            "records": self.records,
            "tokens": self.tokens,
            "capped": self.capped,
            "verdicts": dict(sorted(self.verdicts.items())),
        }
