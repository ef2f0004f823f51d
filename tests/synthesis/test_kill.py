"""SIGKILL at random, twenty times: each seed has one outcome, and the bytes are an unbroken run's."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.synthesis.synthesize import synthesize
from tests.support.fake_server import LASTING, PASSING, Loopback, ScriptedModel, chance_of, make_seeds
from tests.synthesis.test_synthesize import FIRST, METHOD, ROOT, accepted, assert_same_bytes, ends

SEEDS, KILLS = 2000, 20


def faults(prompt: str, attempt: int) -> str | None:
    """Three in a hundred requests fail at first, five for good.

    Not more at first: most of these halve the requests in flight, and some are silent for ten seconds.
    """
    dice = chance_of(prompt, "fault")
    if dice < 0.03 and attempt == 1:
        return PASSING[int(dice / 0.03 * len(PASSING))]
    return LASTING[int((dice - 0.1) / 0.05 * len(LASTING))] if 0.1 <= dice < 0.15 else None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(make_config: Callable[..., SynthesisConfig], tmp_path: Path) -> None:
    model = ScriptedModel()
    with Loopback(model, faults=faults, delay_seconds=0.02) as server:
        config = make_config(server.url, SEEDS, patience_seconds=10)  # no time-outs but those injected
        (tmp_path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
        command = [sys.executable, "tools/synthesize.py", str(tmp_path / "config.yaml")]
        command += ["--out", str(tmp_path / "out")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        chance, kills = random.Random(7), 0
        manifest = tmp_path / "out" / FIRST / "manifest.json"
        while not manifest.exists():
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
        assert Counter(ends(tmp_path / "out")) == Counter(seed.id for seed in make_seeds(SEEDS))
        wrong = [r for r in accepted(tmp_path / "out") if int(r["answer"]) != int(r["id"][5:11]) + 7]
        assert not wrong
        # What is on its way at a kill is lost, at most `concurrency` a kill; no more is asked twice.
        twice = sum(count - 1 for count in server.answered.values())
        assert twice <= KILLS * config.concurrency
        print(
            f"\n{kills} kills, {server.requests} requests, {twice} answers lost on their way and asked again;"
        )
        print(f"injected: {dict(server.injected)}; {len(accepted(tmp_path / 'out'))} accepted")
    with Loopback(ScriptedModel(), faults=faults) as server:
        whole = make_config(server.url, SEEDS, patience_seconds=10)
        summary = synthesize(whole, tmp_path / "whole")["methods"][METHOD]
    caught = summary["verdicts"]["correction: server -, mathematics wrong"]
    print(f"{len(model.lies['correction'])} wrong corrections injected, {caught} read and caught")
    assert_same_bytes(tmp_path / "out", tmp_path / "whole")
