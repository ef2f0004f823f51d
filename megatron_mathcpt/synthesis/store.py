"""Every reply and outcome of a shard in one SQLite file, so that nothing is paid for twice.

Each is written at once: a killed process loses at most the replies in flight. WAL with an exclusive lock
needs no shared memory, so the file may be on a network file system, and a second process on the same shard
is refused. Every row has a checksum: a damaged reply or outcome is removed at the start, so that it is asked
or made again, and a file that is damaged in another way is refused.

Each record has its lineage: seed, requests, prompts, models, sampling, verdicts; `trace` adds their texts.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

import orjson

from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats.files import numbered_lines
from megatron_mathcpt.formats.manifest import load_manifest, verify_hashes
from megatron_mathcpt.formats.strict_json import encode_json
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.synthesis.method import Case, Outcome, Reply

# Tables keep SQLite's row numbers, so rows are in order of arrival. Stored in order of their random keys
# (WITHOUT ROWID), a write took 84 us, not 30, a look-up 20 us, not 5, and the file three times the space.
_VERSION = 2  # of the tables
_SCHEMA = f"""
PRAGMA user_version={_VERSION}; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY, method TEXT NOT NULL, server TEXT NOT NULL, body TEXT NOT NULL, text TEXT NOT NULL,
  error TEXT, reasoning TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  reasoning_tokens INTEGER NOT NULL, others TEXT NOT NULL, checksum BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS outcomes (
  method TEXT NOT NULL, seed TEXT NOT NULL, sample INTEGER NOT NULL, position INTEGER NOT NULL,
  seed_sha256 TEXT NOT NULL, tokens INTEGER NOT NULL, reason TEXT, outcome TEXT NOT NULL,
  checksum BLOB NOT NULL, PRIMARY KEY (method, seed, sample)
);
CREATE INDEX IF NOT EXISTS by_position ON outcomes (method, position, sample);
"""
_NO_SPACE = "free space and start again; what is stored is kept"
_REMEDIES = {"SQLITE_BUSY": "wait for another process on this shard, or choose another --out"}
_REMEDIES |= {"SQLITE_FULL": _NO_SPACE, "SQLITE_IOERR": _NO_SPACE}
_DAMAGED = "make it writable, restore a copy of it, or delete its folder to ask for everything again"
_LOG = get_logger(__name__)
Lineage = list[Mapping[str, object]]  # of the requests


def _checksum(row: Iterable[object]) -> bytes:
    # `ascii`, in which text, bytes and numbers differ, unlike in SQLite.
    return hashlib.blake2b(ascii([*row]).encode(), digest_size=16).digest()


class Store:
    """The file of one shard."""

    FILE = ".store/synthesis.sqlite"

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base
        # Damaged text must reach its checksum.
        base.text_factory = lambda text: text.decode("utf-8", "surrogateescape")

    @classmethod
    @contextmanager
    def open(cls, folder: Path, **identity: str) -> Iterator[Self]:
        """The store of a shard, checked if an `identity` is given and refused if it has another one."""
        path = folder / cls.FILE
        try:
            with closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as base:
                base.execute("PRAGMA locking_mode=EXCLUSIVE")
                version = base.execute("PRAGMA user_version").fetchone()[0]
                if version != _VERSION and base.execute("SELECT 1 FROM sqlite_master").fetchone():
                    raise DataError(f"{path}: of another version of this package; choose another --out")
                base.executescript(_SCHEMA)
                store = cls(base)
                if identity:
                    store.remove_damaged(path)
                for name, value in identity.items():
                    if store.remember(name, value) != value:
                        raise DataError(f"{name}: not those of the run in {folder}; choose another --out")
                yield store
        except sqlite3.Error as error:
            kind = "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])
            raise DataError(f"{path}: {one_line(str(error))}; {_REMEDIES.get(kind, _DAMAGED)}") from error

    def remove_damaged(self, path: Path) -> None:
        """Remove damaged rows; raises `sqlite3.Error` if anything else is damaged."""
        if (found := self._base.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"damaged ({found})")
        for table in ("identity", "outcomes", "requests"):
            rows = self._select(f"rowid, * FROM {table}")
            damaged = [(row,) for row, *values, checksum in rows if checksum != _checksum(values)]
            if not damaged:
                continue
            if table == "identity":
                raise sqlite3.DatabaseError("damaged")
            _LOG.warning("%s: %d damaged %s removed, to be made again", path, len(damaged), table)
            self._base.executemany(f"DELETE FROM {table} WHERE rowid = ?", damaged)
            if table == "requests":  # an outcome without its replies could not be traced
                there = "value NOT IN (SELECT key FROM requests)"
                lacking = f"SELECT 1 FROM json_each(outcome, '$.requests') WHERE {there}"
                self._base.execute(f"DELETE FROM outcomes WHERE EXISTS ({lacking})")

    def _select(self, what: str, *values: object) -> sqlite3.Cursor:
        return self._base.execute(f"SELECT {what}", values)

    def _insert(self, table: str, *values: object) -> None:
        places = ", ".join("?" * (len(values) + 1))
        self._base.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", (*values, _checksum(values)))

    def remember(self, name: str, value: str) -> str:
        """Return the value stored under `name`; store `value` if there is none."""
        self._insert("identity", name, value)
        return str(self._select("value FROM identity WHERE name = ?", name).fetchone()[0])

    def forget(self, name: str) -> None:
        self._base.execute("DELETE FROM identity WHERE name = ?", (name,))

    def find_reply(self, key: str) -> Reply | None:
        if not (row := self._select("* FROM requests WHERE key = ?", key).fetchone()):
            return None
        return Reply(*row[4:10])._replace(others=tuple(Reply(*other) for other in orjson.loads(row[10])))

    def find_request(self, key: str) -> Mapping[str, object]:
        """Return body, text, error and reasoning of a request; nothing if it got no reply."""
        if not (row := self._select("* FROM requests WHERE key = ?", key).fetchone()):
            return {}
        if row[-1] != _checksum(row[:-1]):
            raise sqlite3.DatabaseError(f"request {key} is damaged")
        choices = (row[4:7], *orjson.loads(row[10]))
        first, *others = [dict(zip(("text", "error", "reasoning"), one, strict=True)) for one in choices]
        return {"request": orjson.loads(row[3]), **first, "others": others}

    def keep_reply(self, key: str, method: str, server: str, body: bytes, reply: Reply) -> None:
        # Ignored if it is there: a seed that is twice in the input may make a request twice at the same time.
        others = orjson.dumps([other[:3] for other in reply.others]).decode()
        self._insert("requests", key, method, server, body.decode(), *reply[:6], others)

    def has_outcome(self, case: Case) -> bool:
        """Whether the outcome is stored; raises `DataError` if it is of another seed with the same id."""
        where = "seed_sha256 FROM outcomes WHERE method = ? AND seed = ? AND sample = ?"
        row = self._select(where, case.method, case.seed.id, case.sample).fetchone()
        if row and row[0] != case.seed_sha256:
            raise DataError(f"seed '{case.seed.id}': id of two different problems; give each its own")
        return bool(row)

    def keep_outcome(self, case: Case, tokens: int, row: JsonObject) -> None:
        if self.has_outcome(case):  # the same seed twice in the input, both in progress
            return
        place = (case.method, case.seed.id, case.sample, case.position, case.seed_sha256)
        self._insert("outcomes", *place, tokens, row["reason"], encode_json(row).decode())

    def outcomes(self, method: str) -> Iterator[tuple[int, str, int, int, JsonObject]]:
        """Yield (position, seed, sample, tokens, outcome) in order of the seeds."""
        order = "outcomes WHERE method = ? ORDER BY position, sample"
        what = f"position, seed, sample, tokens, outcome FROM {order}"
        return ((*place, orjson.loads(outcome)) for *place, outcome in self._select(what, method))

    def accepted_tokens(self, method: str) -> int:
        return int(self._select("total(tokens) FROM outcomes WHERE method = ?", method).fetchone()[0])

    def spent(self, method: str | None = None) -> dict[str, tuple[int, int, int, int]]:
        """Return requests and tokens of prompt, completion, reasoning by server, of one method or all."""
        sums = ", ".join(f"sum({name}_tokens)" for name in ("prompt", "completion", "reasoning"))
        what = f"server, count(*), {sums} FROM requests WHERE ?1 IS NULL OR method = ?1 GROUP BY server"
        rows = self._select(f"{what} ORDER BY server", method)
        return {server: tuple(counts) for server, *counts in rows}


def make_row(outcome: Outcome, case: Case, requests: Lineage, thoughts: Iterable[str] = ()) -> JsonObject:
    """Return the outcome as JSON values; each record gets its own id, and its lineage in `extra`."""
    seed, method, sample, verdicts = case.seed, case.method, case.sample, outcome.verdicts
    checks = {name: check._asdict() for name, check in verdicts.checks.items()}
    judged = {"claims": verdicts.claims, "checks": checks, "disagreement": bool(verdicts.contradictions)}
    origin = {"seed": seed.id, "seed_sha256": case.seed_sha256, "method": method, "sample": sample}
    extra: JsonObject = {"lineage": {**origin, "requests": requests, **judged}}
    if case.config.reasoning == "keep" and any(thoughts):
        extra["reasoning"] = [*thoughts]
    own = {"source": method, "extra": extra}
    records = [  # the lines of accepted.jsonl
        vars(record) | {"id": f"{seed.id}/{method}/{sample}.{n}", **own}
        for n, record in enumerate(outcome.records)
    ]
    ended = {"reason": outcome.reason, "detail": outcome.detail, "raw": outcome.raw}
    return ended | judged | {"counts": dict(verdicts.counts), "records": records}


def trace(folder: Path, name: str) -> JsonObject:
    """Return a record by its id, or a rejected case by SEED/METHOD/SAMPLE, with all requests and replies."""
    for path in sorted(folder.rglob("*ed.jsonl")):  # of one shard or all
        accepted = path.name == "accepted.jsonl"
        part = orjson.dumps(name if accepted else name.rsplit("/", 2)[0])
        lines = [line for _, line in numbered_lines(path) if part in line]
        if lines:
            verify_hashes(path.parents[1], load_manifest(path.parents[1], None))  # before it is believed
        for row in map(orjson.loads, lines):
            if name != (row["id"] if accepted else f"{row['seed']}/{path.parent.name}/{row['sample']}"):
                continue
            keys: Lineage = [{"key": key} for key in row.get("requests", ())]
            if made := row["extra"]["lineage"]["requests"] if accepted else keys:
                with Store.open(path.parents[1]) as store:
                    made = [{**request, **store.find_request(str(request["key"]))} for request in made]
            return {"file": str(path), "record": row, "requests": made}
    remedy = "see the ids in its accepted.jsonl files; a rejected case's is SEED/METHOD/SAMPLE"
    raise DataError(f"{folder}: no record or case '{name}'; {remedy}")


def describe_trace(found: JsonObject) -> Iterator[str]:
    """Yield what `trace` returns as lines to read: all but hashes and settings."""
    record, plain = found["record"], str | int | float
    yield found["file"]
    yield from (f"{name}: {value}" for name, value in record.items() if value and isinstance(value, plain))
    for name, check in record.get("extra", {}).get("lineage", record)["checks"].items():
        yield f"check of the {name}: {', '.join(map(str, check.values()))}"
    for request in (made for made in found["requests"] if "request" in made):  # others had no reply
        yield f"── {request.get('server', 'request')}, {request['request']['model']} ──"
        yield from (f"{said['role']}: {said['content']}" for said in request["request"]["messages"])
        yield f"reply: {request['text'] or request['error']}"
