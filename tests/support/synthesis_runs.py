"""Configs and runs of synthesis with a fake server, and what they wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.synthesize import synthesize
from tests.support.fake_server import FakeServer, make_seeds
from tests.support.json_lines import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
METHOD = "tutorship_amplification"
FIRST_SHARD = "shard-00000-of-00001"
NO_SERVER = "http://127.0.0.1:1/v1"
Seeds = list[Problem] | int
SAMPLING = {"temperature": 0.7, "max_tokens": 256}
# Time-outs are short only where a test wants them: on a busy machine a response may take seconds.
PATIENCE = dict.fromkeys(("read_timeout_seconds", "total_timeout_seconds"), 60.0)
FAST = {"first_wait_seconds": 0.01, "maximum_wait_seconds": 1.0, "maximum_response_bytes": 100_000} | PATIENCE
TUTORSHIP = {"student": "student", "student_sampling": SAMPLING, "samples": 1, "right_attempts": "keep"}
TUTORSHIP |= {"teacher": "teacher", "teacher_sampling": SAMPLING}


def build_config(
    folder: Path, url: str, seeds: Seeds = 20, patience_seconds: float = 60.0, **changed: Any
) -> SynthesisConfig:
    """Tutorship amplification with both servers at one address; any section can be replaced."""
    path, rows = folder / "seeds.jsonl", make_seeds(seeds) if isinstance(seeds, int) else seeds
    path.write_text("".join(seed.model_dump_json() + "\n" for seed in rows), encoding="utf-8")
    server = {"model": "test-model", "endpoints": [url], "prompt_price": 1.0, "completion_price": 2.0}
    server |= FAST | dict.fromkeys(PATIENCE, patience_seconds)
    tree = {
        "name": "test",
        "seed": 1,
        "seeds": {"path": str(path)},
        "servers": {"student": server, "teacher": server},
        "methods": {METHOD: TUTORSHIP},
        "verification": {"disagreement": "drop"},
        "concurrency": 32,
        **changed,
    }
    return SynthesisConfig.model_validate_json(json.dumps(tree))


def read_outcomes(out: Path, kind: str = "accepted", shard: str = FIRST_SHARD) -> list[dict[str, Any]]:
    return read_json_lines(out / shard / METHOD / f"{kind}.jsonl")


def outcome_seeds(out: Path, shard: str = FIRST_SHARD) -> list[str]:
    """The seed of each outcome, accepted or rejected."""
    seeds = [row["extra"]["lineage"]["seed"] for row in read_outcomes(out, shard=shard)]
    return seeds + [row["seed"] for row in read_outcomes(out, "rejected", shard)]


def wrong_answers(out: Path) -> list[dict[str, Any]]:
    return [record for record in read_outcomes(out) if int(record["answer"]) != int(record["id"][5:11]) + 7]


def assert_same(out: Path, whole: Path) -> None:
    for name in ("accepted.jsonl", "rejected.jsonl"):
        file = Path(FIRST_SHARD, METHOD, name)
        assert (out / file).read_bytes() == (whole / file).read_bytes()


@dataclass
class Trial:
    """Runs of synthesis into `folder` with a fake server."""

    folder: Path
    server: FakeServer

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def config(self, seeds: Seeds = 20, **changed: Any) -> SynthesisConfig:
        return build_config(self.folder, self.server.url, seeds, **changed)

    def run(self, seeds: Seeds = 20, out: str = "out", **changed: Any) -> dict[str, Any]:
        summary = synthesize(self.config(seeds, **changed), self.folder / out)
        return {**summary["methods"][METHOD], "stopped": summary["stopped"]}
