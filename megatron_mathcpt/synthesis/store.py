"""Every answer and every outcome, in one SQLite file a shard; the reason why nothing is paid twice.

What one round of the event loop brings is one transaction, ended before the loop looks for more: a killed
process loses at most the answers on their way. WAL with an exclusive lock needs no shared memory, so the file
may lie on a network file system, and a second process on the same shard is refused.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.synthesis.method import Reply

# Tables keep SQLite's row numbers, so rows lie as they come. Stored in order of their random keys (WITHOUT
# ROWID), writing and reading took four times the CPU time, and the file three times the space.
_SCHEMA = """
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
class Spent:
    """Requests and tokens that one server was paid for."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Usage:
    """What one seed took in one method, all samples together; `tokens` are (server, prompt, completion)."""

    requests: int
    tokens: tuple[tuple[str, int, int], ...]
    records: int
    accepted_tokens: int


@dataclass(frozen=True)
class Place:
    """Where an outcome belongs; `position` is the seed's in the input."""

    method: str
    seed: str
    sample: int
    position: int


class Store:
    """The file of one shard."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, str] = {}  # what `remember` told; the file is locked, so nobody changes it
        self._base = sqlite3.connect(path, isolation_level=None, timeout=1, check_same_thread=False)
        try:
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
                self._base.execute(f"PRAGMA {pragma}")
            self._base.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: cannot be opened ({error}); another process may be at work on this shard: "
                "wait for it, or choose another --out"
            ) from error

    def close(self) -> None:
        """Commit and close the file."""
        self.commit()
        self._base.close()

    def commit(self) -> None:
        """Make everything kept so far outlast a kill."""
        if self._base.in_transaction:
            self._base.execute("COMMIT")

    def _begin(self) -> None:
        """Open a transaction that ends first thing in the event loop's next round."""
        if not self._base.in_transaction:
            self._base.execute("BEGIN")
            asyncio.get_running_loop().call_soon(self.commit)

    def remember(self, name: str, value: str) -> str:
        """The value known under `name`, which is `value` if none was known before."""
        if name not in self._known:
            self._base.execute("INSERT OR IGNORE INTO identity VALUES (?, ?)", (name, value))
            row = self._base.execute("SELECT value FROM identity WHERE name = ?", (name,)).fetchone()
            self._known[name] = str(row[0])
        return self._known[name]

    def forget(self, name: str) -> None:
        """Know nothing under `name`."""
        self._known.pop(name, None)
        self._base.execute("DELETE FROM identity WHERE name = ?", (name,))

    def find_reply(self, key: str) -> Reply | None:
        """The stored answer of a request."""
        columns = "key, text, error, prompt_tokens, completion_tokens"
        row = self._base.execute(f"SELECT {columns} FROM requests WHERE key = ?", (key,)).fetchone()
        return Reply(*row) if row else None

    def find_request(self, key: str) -> dict[str, Any] | None:
        """Body, answer and error of a request, for its lineage."""
        row = self._base.execute("SELECT body, text, error FROM requests WHERE key = ?", (key,)).fetchone()
        return {"request": orjson.loads(row[0]), "text": row[1], "error": row[2]} if row else None

    def keep_reply(self, method: str, server: str, body: bytes, reply: Reply) -> None:
        """Keep an answer that was paid for; within a running event loop."""
        self._begin()
        self._base.execute(
            "INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(reply.key, method, server, body.decode(), reply.text, reply.error),
                *(reply.prompt_tokens, reply.completion_tokens),
            ),
        )

    def find_outcome(self, method: str, seed: str, sample: int) -> str | None:
        """The hash of the seed whose outcome is known."""
        row = self._base.execute(
            "SELECT seed_sha256 FROM outcomes WHERE method = ? AND seed = ? AND sample = ?",
            (method, seed, sample),
        ).fetchone()
        return str(row[0]) if row else None

    def keep_outcome(self, place: Place, seed_sha256: str, tokens: int, row: dict[str, Any]) -> None:
        """Keep how a seed ended, once for each method, seed and sample; within a running event loop."""
        self._begin()
        columns = (place.method, place.seed, place.sample, place.position)
        self._base.execute(
            "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*columns, seed_sha256, tokens, row["reason"], orjson.dumps(row).decode()),
        )

    def forget_server_failures(self) -> None:
        """Drop the outcomes of seeds that no server answered, so that they are tried again."""
        self._base.execute("DELETE FROM outcomes WHERE reason LIKE 'server: %'")

    def outcomes(self, method: str) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """(seed, sample, tokens, outcome) in order of the seeds."""
        rows = self._base.execute(
            "SELECT seed, sample, tokens, outcome FROM outcomes WHERE method = ? ORDER BY position, sample",
            (method,),
        )
        for seed, sample, tokens, outcome in rows:
            yield seed, sample, tokens, orjson.loads(outcome)

    def accepted_tokens(self, method: str) -> int:
        """Tokens of all records that one method accepted."""
        row = self._base.execute("SELECT sum(tokens) FROM outcomes WHERE method = ?", (method,)).fetchone()
        return int(row[0] or 0)

    def usage(self, method: str, positions: Iterable[int]) -> list[Usage]:
        """What the seeds at `positions` took, those that have their outcomes."""
        found = []
        for position in sorted(positions):
            rows = self._base.execute(
                "SELECT tokens, outcome FROM outcomes WHERE method = ? AND position = ?", (method, position)
            ).fetchall()
            if rows:
                outcomes = [orjson.loads(outcome) for _, outcome in rows]
                paid = [self._tokens_of(key) for outcome in outcomes for key in outcome["requests"]]
                records = sum(len(outcome["records"]) for outcome in outcomes)
                found.append(Usage(len(paid), tuple(paid), records, sum(tokens for tokens, _ in rows)))
        return found

    def _tokens_of(self, key: str) -> tuple[str, int, int]:
        row = self._base.execute(
            "SELECT server, prompt_tokens, completion_tokens FROM requests WHERE key = ?", (key,)
        ).fetchone()
        return row or ("", 0, 0)

    def spent(self, method: str | None = None) -> dict[str, Spent]:
        """What each server was paid for, in one method or in all."""
        rows = self._base.execute(
            "SELECT server, count(*), sum(prompt_tokens), sum(completion_tokens) FROM requests "
            "WHERE ?1 IS NULL OR method = ?1 GROUP BY server ORDER BY server",
            (method,),
        )
        return {server: Spent(*counts) for server, *counts in rows}
