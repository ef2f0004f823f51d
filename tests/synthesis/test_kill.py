"""SIGKILL at random, twenty times: each seed has one outcome, and the bytes are an unbroken run's."""

import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from megatron_mathcpt.config.base import dump_yaml
from tests.support.fake_server import make_seeds, mixed_faults
from tests.synthesis.conftest import FIRST, ROOT, Trial, assert_same_bytes, ends, wrong_records

SEEDS, KILLS = 2000, 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(trial: Trial) -> None:
    server, out = trial.server, trial.out
    # Not more at first: most of these halve the requests in flight, and some are silent for ten seconds.
    server.faults, server.delay_seconds = mixed_faults(0.03, 0.05), 0.02
    config = trial.config(SEEDS, patience_seconds=10)  # no time-outs but those injected
    path = trial.folder / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    command = [sys.executable, "tools/synthesize.py", str(path), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    chance, kills = random.Random(7), 0
    while not (out / FIRST / "manifest.json").exists():
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        if kills < KILLS:
            before = sum(server.answered.values())
            while process.poll() is None and sum(server.answered.values()) == before:
                time.sleep(0.02)  # it has begun to ask
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
            kills += 1
        assert process.wait(600) in (0, -9)
    assert kills == KILLS
    assert Counter(ends(out)) == Counter(seed.id for seed in make_seeds(SEEDS))
    assert not wrong_records(out)
    # What is on its way at a kill is lost, at most `concurrency` a kill; no more is asked twice.
    twice = sum(count - 1 for count in server.answered.values())
    assert twice <= KILLS * config.concurrency
    server.delay_seconds = 0
    server.attempts.clear()
    trial.run(SEEDS, "whole", patience_seconds=10)
    assert_same_bytes(out, trial.folder / "whole")
