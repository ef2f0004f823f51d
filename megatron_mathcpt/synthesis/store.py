"""The seeds of a shard, and every answer and outcome in one SQLite file: why nothing is paid twice.

What one round of the event loop brings is one transaction, ended before the loop looks for more: a killed
process loses at most the answers on their way. WAL with an exclusive lock needs no shared memory, so the file
may lie on a network file system, and a second process on the same shard is refused.

Each record carries its lineage: seed, requests, prompts, models, sampling, verdicts. `trace` adds the
requests and answers themselves.
"""

import asyncio
import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import ValidationError

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError, first_error
from megatron_mathcpt.formats.files import list_files, numbered_lines
from megatron_mathcpt.records import Problem, problem_of_row
from megatron_mathcpt.synthesis.method import Case, Outcome, Reply

STORE = Path(".store") / "synthesis.sqlite"
# Tables keep SQLite's row numbers, so rows lie as they come. Stored in order of their random keys (WITHOUT
# ROWID), writing and reading took four times the CPU time, and the file three times the space.
_SCHEMA = """
PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY, method TEXT NOT NULL, server TEXT NOT NULL, body TEXT NOT NULL, text TEXT NOT NULL,
  error TEXT, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS outcomes (
  method TEXT NOT NULL, seed TEXT NOT NULL, sample INTEGER NOT NULL, position INTEGER NOT NULL,
  seed_sha256 TEXT NOT NULL, tokens INTEGER NOT NULL, reason TEXT, outcome TEXT NOT NULL,
  PRIMARY KEY (method, seed, sample)
);
CREATE INDEX IF NOT EXISTS by_position ON outcomes (method, position, sample);
"""


@dataclass(frozen=True)
class SeedShard:
    """Which seeds are ours: those whose position leaves `number` when divided by `count`."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `INDEX/COUNT`; raises `DataError` for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if not found or int(found[1]) >= int(found[2]):
            raise DataError(f"shard '{text}': expected INDEX/COUNT from 0/COUNT on, such as 0/16")
        return cls(int(found[1]), int(found[2]))

    @property
    def folder_name(self) -> str:
        return f"shard-{self.number:05d}-of-{self.count:05d}"

    def share(self, whole: int | None) -> int | None:
        """This shard's part of a cap."""
        return None if whole is None else len(range(self.number, whole, self.count))


def check_seeds(config: SynthesisConfig) -> tuple[int, str]:
    """Number of seeds, and the hash of all their lines; raises `DataError` naming the line of a bad one.

    Where no server is asked, lines are only hashed: nothing is lost by meeting a bad one later.
    """
    digest, count, check = hashlib.sha256(), 0, bool(config.asked)
    for place, line in _seed_lines(config.seeds):
        if check:
            _parse_seed(place, line)
        digest.update(line + b"\n")
        count += 1
    if not count:
        raise DataError(f"{', '.join(config.seeds)}: no seeds; give files of one JSON problem a line")
    return count, digest.hexdigest()


def read_seeds(paths: tuple[str, ...], shard: SeedShard) -> Iterator[tuple[int, Problem]]:
    """(position over all files, seed) of this shard, in order; millions of them never sit in memory."""
    for position, (place, line) in enumerate(_seed_lines(paths)):
        if position % shard.count == shard.number:
            yield position, _parse_seed(place, line)


def _seed_lines(paths: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(file:line, line) of all lines that hold something."""
    for path in (path for given in paths for path in list_files(given, "seeds")):
        for number, line in numbered_lines(path):
            yield f"{path}:{number}", line


def _parse_seed(place: str, line: bytes) -> Problem:
    try:
        return problem_of_row(orjson.loads(line))
    except ValidationError as error:
        raise DataError(
            f"{place}: seed's {': '.join(filter(None, first_error(error)))}; mend or drop the line"
        ) from error
    except (orjson.JSONDecodeError, AttributeError, TypeError) as error:
        raise DataError(f"{place}: no JSON object in UTF-8 ({error}); mend or drop the line") from error


class Store:
    """The file of one shard; refused where it was begun with another `identity`."""

    def __init__(self, path: Path, **identity: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, isolation_level=None, timeout=1)
        try:
            self._base.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: cannot be opened ({error}); another process may be at work on this shard: "
                "wait for it, or choose another --out"
            ) from error
        for name, value in identity.items():
            if self.remember(name, value) != value:
                self._base.close()
                raise DataError(
                    f"{name}: changed since this shard was begun; choose another --out, or delete the folder"
                )

    def close(self) -> None:
        self._commit()
        self._base.close()

    def _commit(self) -> None:
        if self._base.in_transaction:
            self._base.execute("COMMIT")

    def _begin(self) -> None:
        """Open a transaction that ends first thing in the event loop's next round."""
        if not self._base.in_transaction:
            self._base.execute("BEGIN")
            asyncio.get_running_loop().call_soon(self._commit)

    def remember(self, name: str, value: str) -> str:
        """The value known under `name`, which is `value` if none was known before."""
        self._base.execute("INSERT OR IGNORE INTO identity VALUES (?, ?)", (name, value))
        return str(self._find("value FROM identity WHERE name = ?", name)[0])

    def forget(self, name: str) -> None:
        self._base.execute("DELETE FROM identity WHERE name = ?", (name,))

    def _find(self, what: str, *values: object) -> Any:
        return self._base.execute(f"SELECT {what}", values).fetchone()

    def find_reply(self, key: str) -> Reply | None:
        row = self._find("text, error, prompt_tokens, completion_tokens FROM requests WHERE key = ?", key)
        return Reply(*row) if row else None

    def find_request(self, key: str) -> dict[str, Any]:
        """Body, answer and error of a request, for its lineage; nothing where it got no answer."""
        row = self._find("body, text, error FROM requests WHERE key = ?", key)
        return {"request": orjson.loads(row[0]), "text": row[1], "error": row[2]} if row else {}

    def keep_reply(self, key: str, method: str, server: str, body: bytes, reply: Reply) -> None:
        self._begin()
        said = (reply.text, reply.error, reply.prompt_tokens, reply.completion_tokens)
        row = (key, method, server, body.decode(), *said)
        self._base.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def has_outcome(self, case: Case) -> bool:
        """Whether the outcome is known; raises `DataError` where it is another seed's of the same id."""
        place = "seed_sha256 FROM outcomes WHERE method = ? AND seed = ? AND sample = ?"
        row = self._find(place, case.method, case.seed.id, case.sample)
        if row and row[0] != case.seed_sha256:
            raise DataError(
                f"seed '{case.seed.id}': stands for two different problems; give every seed its own id"
            )
        return bool(row)

    def keep_outcome(self, case: Case, tokens: int, row: dict[str, Any]) -> None:
        """Keep how a case ended, once for each seed; within a running event loop."""
        if self.has_outcome(case):
            return
        self._begin()
        place = (case.method, case.seed.id, case.sample, case.position, case.seed_sha256)
        end = (tokens, row["reason"], orjson.dumps(row).decode())
        self._base.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*place, *end))

    def forget_server_failures(self) -> None:
        """Drop the outcomes of seeds that no server answered, so that they are tried again."""
        self._base.execute("DELETE FROM outcomes WHERE reason LIKE 'server: %'")

    def outcomes(self, method: str) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """(seed, sample, tokens, outcome) in order of the seeds."""
        rows = self._base.execute(
            "SELECT seed, sample, tokens, outcome FROM outcomes WHERE method = ? ORDER BY position, sample",
            (method,),
        )
        return ((*place, orjson.loads(outcome)) for *place, outcome in rows)

    def accepted_tokens(self, method: str) -> int:
        """Tokens of all records that one method accepted."""
        return int(self._find("sum(tokens) FROM outcomes WHERE method = ?", method)[0] or 0)

    def spent(self, method: str | None = None) -> dict[str, tuple[int, int, int]]:
        """Requests, prompt and completion tokens each server was paid for, in one method or in all."""
        rows = self._base.execute(
            "SELECT server, count(*), sum(prompt_tokens), sum(completion_tokens) FROM requests "
            "WHERE ?1 IS NULL OR method = ?1 GROUP BY server ORDER BY server",
            (method,),
        )
        return {server: tuple(counts) for server, *counts in rows}


def outcome_row(outcome: Outcome, case: Case, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome as JSON values; each record gets an id of its own and its lineage in `extra`."""
    seed, method, sample = case.seed, case.method, case.sample
    verdicts = {
        "claims": outcome.claims,
        "checks": {name: check._asdict() for name, check in outcome.checks.items()},
        "disagreement": outcome.disagreement,
    }
    origin = {"seed": seed.id, "seed_sha256": case.seed_sha256, "method": method, "sample": sample}
    lineage = {**origin, "requests": requests, **verdicts}
    own = {"source": method, "extra": {"lineage": lineage}}
    records = [
        vars(record) | {"id": f"{seed.id}/{method}/{sample}.{n}", **own}
        for n, record in enumerate(outcome.records)
    ]
    why = {"reason": outcome.reason, "detail": outcome.detail, "raw": outcome.raw}
    return {**why, **verdicts, "records": records}


def trace(folder: Path, record_id: str) -> dict[str, Any]:
    """A record of a synthesis folder (of one shard or of all) with every request and answer behind it.

    Raises `DataError` when no accepted record has that id.
    """
    for path in sorted(folder.rglob("accepted.jsonl")):
        for _, line in numbered_lines(path):
            row = orjson.loads(line) if record_id.encode() in line else {}
            if row.get("id") == record_id:
                made = row["extra"]["lineage"]["requests"]
                if made:
                    with closing(Store(path.parents[1] / STORE)) as store:
                        made = [request | store.find_request(request["key"]) for request in made]
                return {"file": str(path), "record": row, "requests": made}
    raise DataError(f"{folder}: no accepted record '{record_id}'; ids stand in the accepted.jsonl files")
