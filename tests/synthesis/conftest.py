"""Configs and seeds for synthesis tests."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.records import Problem
from tests.support.fake_server import make_seeds

SAMPLING = {"temperature": 0.7, "max_tokens": 256}
# Time-outs are short only where a test wants them: on a busy machine an answer may take seconds.
FAST = {
    "read_timeout_seconds": 60.0,
    "total_timeout_seconds": 60.0,
    "first_wait_seconds": 0.01,
    "maximum_wait_seconds": 1.0,
    "maximum_response_bytes": 100_000,
}
TUTORSHIP = {
    "student": "student",
    "student_sampling": SAMPLING,
    "teacher": "teacher",
    "teacher_sampling": SAMPLING,
    "samples": 1,
    "right_attempts": "keep",
}
DIVERSIFICATION = {"server": "teacher", "sampling": SAMPLING}
SOLVER = {"solver": "teacher", "solver_sampling": SAMPLING, "solutions": 3, "agreeing": 2}
METHODS: dict[str, dict[str, Any]] = {
    "response_diversification": DIVERSIFICATION,
    "query_expansion": DIVERSIFICATION | SOLVER,
    "tutorship_amplification": TUTORSHIP,
    "retrospective_enhancement": {},
}


def write_seeds(path: Path, seeds: list[Problem]) -> str:
    path.write_text("".join(seed.model_dump_json() + "\n" for seed in seeds), encoding="utf-8")
    return str(path)


def build_config(
    folder: Path, url: str, seeds: list[Problem] | int = 20, patience_seconds: float = 60.0, **changed: Any
) -> SynthesisConfig:
    """Tutorship amplification with both servers at one address; any section can be replaced."""
    rows = make_seeds(seeds) if isinstance(seeds, int) else seeds
    patience = dict.fromkeys(("read_timeout_seconds", "total_timeout_seconds"), patience_seconds)
    prices = {"prompt_price": 1.0, "completion_price": 2.0}
    server = {"model": "test-model", "endpoints": [url], **prices, **FAST, **patience}
    tree = {
        "name": "test",
        "seed": 1,
        "seeds": [write_seeds(folder / "seeds.jsonl", rows)],
        "servers": {"student": server, "teacher": server},
        "methods": {"tutorship_amplification": TUTORSHIP},
        "verification": {"disagreement": "drop"},
        "concurrency": 32,
        **changed,
    }
    return SynthesisConfig.model_validate_json(json.dumps(tree))


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., SynthesisConfig]:
    return partial(build_config, tmp_path)
