"""A few seeds, spread evenly over the input, tell what the whole run will take; their answers are kept.

The intervals are 95 % confidence intervals of a total (mean of a seed, times seeds; Student's t), without
the finite population correction.
"""

import asyncio
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.synthesis.budget import cost
from megatron_mathcpt.synthesis.lineage import STORE
from megatron_mathcpt.synthesis.methods import CONVERSATIONS, chosen
from megatron_mathcpt.synthesis.run import converse_all, prepare_store
from megatron_mathcpt.synthesis.seeds import Shard, survey
from megatron_mathcpt.synthesis.store import Store, Usage

# 97.5 % points of Student's t by degrees of freedom; between two the smaller is taken, which is wider.
_STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 15: 2.131,
              20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980, 1000: 1.962}  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """A total over all seeds, and its interval."""

    total: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What one method will take over the whole run. `seconds` assumes all places in flight are in use."""

    method: str
    pilot_seeds: int
    seeds: int
    requests: Prediction
    tokens: Prediction
    cost: Prediction
    accepted_records: Prediction
    accepted_tokens: Prediction
    seconds: Prediction


def pilot(config: SynthesisConfig, out: Path, count: int, *, accept_model: bool = False) -> list[Forecast]:
    """Run `count` seeds of the whole input through every method that asks a server, and predict the rest."""
    known = survey(config.seeds)
    whole = known.seeds if config.budget.seeds is None else min(known.seeds, config.budget.seeds)
    count = min(count, whole)
    positions = frozenset(round((i + 0.5) * whole / count - 0.5) for i in range(count))
    store = Store(out / Shard().folder_name / STORE)
    try:
        prepare_store(store, config, known)
        driver = asyncio.run(
            converse_all(config, Shard(), known, store, accept_model=accept_model, positions=positions)
        )
        seconds_a_request = driver.client.busy_seconds / max(1, driver.client.answers)
        return [
            _forecast(config, name, whole, store.usage(name, positions), seconds_a_request)
            for name in chosen(config.methods)
            if name in CONVERSATIONS
        ]
    finally:
        store.close()


def predict(values: list[float], seeds: int) -> Prediction:
    """Total over `seeds` of something measured on a few of them; the interval never goes below zero."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Prediction(mean * seeds, 0.0, math.inf)
    freedom = max(key for key in _STUDENT_T if key < len(values))
    half = _STUDENT_T[freedom] * statistics.stdev(values) / math.sqrt(len(values))
    return Prediction(mean * seeds, max(0.0, mean - half) * seeds, (mean + half) * seeds)


def _forecast(
    config: SynthesisConfig, method: str, seeds: int, used: list[Usage], seconds_a_request: float
) -> Forecast:
    places = min(
        config.concurrency,
        sum(s.maximum_in_flight * len(s.endpoints) for s in config.servers.values()),
    )
    requests = predict([float(u.requests) for u in used], seeds)
    pace = seconds_a_request / places
    return Forecast(
        method=method,
        pilot_seeds=len(used),
        seeds=seeds,
        requests=requests,
        tokens=predict([float(sum(p + c for _, p, c in u.tokens)) for u in used], seeds),
        cost=predict([sum(cost(config.servers[s], p, c) for s, p, c in u.tokens if s) for u in used], seeds),
        accepted_records=predict([float(u.records) for u in used], seeds),
        accepted_tokens=predict([float(u.accepted_tokens) for u in used], seeds),
        seconds=Prediction(requests.total * pace, requests.low * pace, requests.high * pace),
    )
