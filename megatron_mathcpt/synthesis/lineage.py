"""Where a record comes from: seed, requests, prompts, models, sampling, verdicts; and the way back."""

from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.config.synthesis import Server
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import Outcome, Request, hash_seed
from megatron_mathcpt.synthesis.store import Store

STORE = Path(".store") / "synthesis.sqlite"


def request_lineage(key: str, request: Request, server: Server) -> dict[str, Any]:
    """What decided one answer."""
    return {
        "key": key,
        "server": request.server,
        "model": server.model,
        "prompt_sha256": request.prompt.template_sha256,
        "sampling": vars(request.sampling),
        "seed": request.seed,
    }


def outcome_row(
    outcome: Outcome, method: str, seed: Problem, sample: int, requests: list[dict[str, Any]]
) -> dict[str, Any]:
    """The outcome as JSON values; each record gets an id of its own and its lineage in `extra`."""
    checks = {name: check.as_row() for name, check in outcome.checks.items()}
    disagreement = outcome.disagreement
    lineage = {
        "seed": seed.id,
        "seed_sha256": hash_seed(seed),
        "method": method,
        "sample": sample,
        "requests": requests,
        "claims": outcome.claims,
        "checks": checks,
        "disagreement": disagreement,
    }
    return {
        "reason": outcome.reason,
        "detail": outcome.detail,
        "raw": outcome.raw,
        "claims": outcome.claims,
        "checks": checks,
        "disagreement": disagreement,
        "records": [
            vars(record)
            | {
                "id": f"{seed.id}/{method}/{sample}.{number}",
                "source": method,
                "extra": {"lineage": lineage},
            }
            for number, record in enumerate(outcome.records)
        ],
    }


def trace(folder: Path, record_id: str) -> dict[str, Any]:
    """A record of a synthesis folder (of one shard or of all) with every request and answer behind it.

    Raises `DataError` when no accepted record has that id.
    """
    for path in sorted(folder.rglob("accepted.jsonl")):
        with path.open("rb") as file:
            for line in file:
                row = orjson.loads(line) if record_id.encode() in line else {}
                if row.get("id") == record_id:
                    return {"file": str(path), "record": row, "requests": _requests(path.parent.parent, row)}
    raise DataError(f"{folder}: no accepted record '{record_id}'; ids stand in the accepted.jsonl files")


def _requests(shard: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    made = row["extra"]["lineage"]["requests"]
    if not made:
        return []
    store = Store(shard / STORE)
    try:
        return [request | (store.find_request(request["key"]) or {}) for request in made]
    finally:
        store.close()
