"""Configs, seeds and runs for synthesis tests."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.synthesize import synthesize
from tests.support.fake_server import Loopback, ScriptedModel, make_seeds

ROOT = Path(__file__).resolve().parents[2]
METHOD = "tutorship_amplification"
FIRST = "shard-00000-of-00001"
NOBODY = "http://127.0.0.1:1/v1"
Seeds = list[Problem] | int
SAMPLING = {"temperature": 0.7, "max_tokens": 256}
# Time-outs are short only where a test needs them: on a busy machine a reply may take seconds.
PATIENCE = dict.fromkeys(("read_timeout_seconds", "total_timeout_seconds"), 60.0)
FAST = {"first_wait_seconds": 0.01, "maximum_wait_seconds": 1.0, "maximum_response_bytes": 100_000} | PATIENCE
STUDENT = {"student": "student", "student_sampling": SAMPLING, "samples": 1}
TUTORSHIP = STUDENT | {"teacher": "teacher", "teacher_sampling": SAMPLING, "right_attempts": "keep"}


def build_config(
    folder: Path, url: str, seeds: Seeds = 20, patience_seconds: float = 60.0, **changed: Any
) -> SynthesisConfig:
    """Tutorship amplification with both servers at one address; any section can be replaced."""
    path, rows = folder / "seeds.jsonl", make_seeds(seeds) if isinstance(seeds, int) else seeds
    path.write_text("".join(seed.model_dump_json() + "\n" for seed in rows), encoding="utf-8")
    prices = {"prompt_price": 1.0, "completion_price": 2.0}
    server = {"model": "test-model", "endpoints": [url], **prices, **FAST}
    server |= dict.fromkeys(PATIENCE, patience_seconds)
    tree = {
        "name": "test",
        "seed": 1,
        "seeds": [str(path)],
        "servers": {"student": server, "teacher": server},
        "methods": {METHOD: TUTORSHIP},
        "verification": {"disagreement": "drop"},
        "concurrency": 32,
        **changed,
    }
    return SynthesisConfig.model_validate_json(json.dumps(tree))


def read(out: Path, kind: str = "accepted", shard: str = FIRST) -> list[dict[str, Any]]:
    return read_json_lines(out / shard / METHOD / f"{kind}.jsonl")


def ends(out: Path, shard: str = FIRST) -> list[str]:
    """Return the seed of each outcome."""
    seeds = [row["extra"]["lineage"]["seed"] for row in read(out, shard=shard)]
    return seeds + [row["seed"] for row in read(out, "rejected", shard)]


def wrong(out: Path) -> list[dict[str, Any]]:
    return [record for record in read(out) if int(record["answer"]) != int(record["id"][5:11]) + 7]


def assert_same(out: Path, whole: Path) -> None:
    for name in ("accepted.jsonl", "rejected.jsonl"):
        there = Path(FIRST, METHOD, name)
        assert (out / there).read_bytes() == (whole / there).read_bytes()


@dataclass
class Trial:
    """Runs into `folder` with a fake server on localhost."""

    folder: Path
    server: Loopback

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def config(self, seeds: Seeds = 20, **changed: Any) -> SynthesisConfig:
        return build_config(self.folder, self.server.url, seeds, **changed)

    def run(self, seeds: Seeds = 20, out: str = "out", **changed: Any) -> dict[str, Any]:
        """Run, and return the summary of the method."""
        summary = synthesize(self.config(seeds, **changed), self.folder / out)
        return {**summary["methods"][METHOD], "stopped": summary["stopped"]}


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    with Loopback(ScriptedModel()) as server:
        yield Trial(tmp_path, server)
