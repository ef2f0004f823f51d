"""Whole runs against the loopback server: outcomes, resume, budgets, shards, lineage, prices."""

import bz2
import gzip
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError, ManifestError, ServerError
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.store import SeedShard, check_seeds, read_seeds, trace
from megatron_mathcpt.synthesis.synthesize import first_prompts, pilot, synthesize
from tests.support.fake_server import LASTING, PASSING, Loopback, ScriptedModel, chance_of, make_seeds
from tests.synthesis.conftest import SAMPLING, TUTORSHIP
from tests.synthesis.test_client import NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
MakeConfig = Callable[..., SynthesisConfig]
METHOD = "tutorship_amplification"
FIRST = "shard-00000-of-00001"
NOBODY = "http://127.0.0.1:1/v1"


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(ScriptedModel()) as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def accepted(out: Path, shard: str = FIRST) -> list[dict[str, Any]]:
    return read_json_lines(out / shard / METHOD / "accepted.jsonl")


def rejected(out: Path, shard: str = FIRST) -> list[dict[str, Any]]:
    return read_json_lines(out / shard / METHOD / "rejected.jsonl")


def ends(out: Path, shard: str = FIRST) -> list[str]:
    """The seed of each outcome."""
    seeds = [row["extra"]["lineage"]["seed"] for row in accepted(out, shard)]
    return seeds + [row["seed"] for row in rejected(out, shard)]


def assert_same_bytes(out: Path, whole: Path) -> None:
    for name in ("accepted.jsonl", "rejected.jsonl"):
        there = Path(FIRST, METHOD, name)
        assert (out / there).read_bytes() == (whole / there).read_bytes()


def change_store(out: Path, *statements: str) -> None:
    """Change what an unfinished run has stored."""
    (out / FIRST / "manifest.json").unlink()
    with closing(sqlite3.connect(out / FIRST / ".store" / "synthesis.sqlite")) as base:
        for statement in statements:
            base.execute(statement)
        base.commit()


def test_every_wrong_final_answer_is_caught(make_config: MakeConfig, server: Loopback, out: Path) -> None:
    summary = synthesize(make_config(server.url, 300), out)["methods"][METHOD]
    for record in accepted(out):
        a, b = map(int, record["question"].removeprefix("What is ").removesuffix("?").split(" + "))
        assert int(record["answer"]) == a + b
        assert f"= {a + b}" in record["solution"].splitlines()[-1] + record["solution"].splitlines()[0]
    verdicts, lies = summary["verdicts"], server.model.lies  # type: ignore[attr-defined]
    assert verdicts["correction: server -, mathematics wrong"] == len(lies["correction"]) > 10
    false = sum(
        verdicts[f"attempt: server {claim}, mathematics {truth}"]
        for claim, truth in (("correct", "wrong"), ("wrong", "correct"))
    )
    assert false == len(lies["verdict"]) > 10
    assert summary["outcomes"] == summary["accepted"] + sum(summary["rejected"].values()) == 300
    assert len(rejected(out)) == sum(summary["rejected"].values())


def test_records_are_problems_and_the_folder_is_complete(
    make_config: MakeConfig, server: Loopback, out: Path
) -> None:
    config = make_config(server.url)
    synthesize(config, out)
    asked = server.requests
    again = synthesize(config, out)
    assert server.requests == asked
    manifest = load_manifest(out / FIRST, "synthesis")
    assert manifest.counts == again
    assert not [name for name in manifest.outputs if "store" in name]
    problems = [Problem.model_validate(row) for row in accepted(out)]
    assert {p.source for p in problems} == {METHOD}
    with pytest.raises(ManifestError, match="another config 'seed'"):
        synthesize(config.model_copy(update={"seed": 2}), out)


def test_faults_end_in_one_outcome_each(make_config: MakeConfig, server: Loopback, out: Path) -> None:
    """All faults at once. What passes leaves no trace; what lasts is a named rejection, never a record."""

    def faults(prompt: str, attempt: int) -> str | None:
        dice = chance_of(prompt, "fault")
        if dice < 0.3 and attempt == 1:
            return PASSING[int(dice / 0.3 * len(PASSING))]
        return LASTING[int((dice - 0.3) / 0.2 * len(LASTING))] if 0.3 <= dice < 0.5 else None

    server.faults = faults
    synthesize(make_config(server.url, 150, patience_seconds=6), out)  # the silent ones' end
    assert set(server.injected) == {*PASSING, *LASTING}
    assert max(server.answered.values()) == 1  # no answer is paid twice
    assert sorted(ends(out)) == [seed.id for seed in make_seeds(150)]
    assert all(int(r["answer"]) == int(r["id"][5:11]) + 7 for r in accepted(out))
    assert {r["reason"] for r in rejected(out)} >= {*NAMES.values()} - {None}


def test_a_stopped_run_goes_on_where_it_was(
    make_config: MakeConfig, server: Loopback, out: Path, tmp_path: Path
) -> None:
    server.faults = lambda _p, _a: "401" if sum(server.answered.values()) >= 30 else None
    config = make_config(server.url, 40, concurrency=4)
    with pytest.raises(ServerError, match="401"):
        synthesize(config, out)
    assert not (out / FIRST / "manifest.json").exists()
    server.faults = lambda _p, _a: None
    synthesize(config, out)
    change_store(out, "DELETE FROM outcomes")  # as if killed after the answers and before the outcomes
    synthesize(config, out)
    assert sum(server.answered.values()) == 80  # each answer is paid once
    synthesize(config, tmp_path / "whole")
    assert_same_bytes(out, tmp_path / "whole")


def test_seeds_no_server_answered_are_tried_in_the_next_run(
    make_config: MakeConfig, server: Loopback, out: Path
) -> None:
    server.faults = lambda prompt, _a: "500" if "is 3 +" in prompt else None
    config = make_config(server.url)
    assert synthesize(config, out)["methods"][METHOD]["rejected"]["server: status 500"] == 1
    server.faults = lambda _p, _a: None
    (out / FIRST / "manifest.json").unlink()
    assert "server: status 500" not in synthesize(config, out)["methods"][METHOD]["rejected"]


def test_another_model_behind_the_same_address_is_refused(
    make_config: MakeConfig, server: Loopback, out: Path, tmp_path: Path
) -> None:
    config = make_config(server.url)
    synthesize(config, out)
    old = "UPDATE identity SET value = 'old-model' WHERE name LIKE 'replies as %'"
    change_store(out, old, "DELETE FROM requests", "DELETE FROM outcomes")
    with pytest.raises(ServerError, match="answers as model 'test-model', before as 'old-model'"):
        synthesize(config, out)
    synthesize(config, out, accept_model=True)
    server.name = "other-model"
    with pytest.raises(ServerError, match="serves other-model, not 'test-model'"):
        synthesize(config, tmp_path / "other")


def test_limits_of_tokens_and_money_are_never_passed(
    make_config: MakeConfig, server: Loopback, out: Path, tmp_path: Path
) -> None:
    server.delay_seconds = 0.01
    config = make_config(server.url, 200, concurrency=4, budget={"maximum_tokens": 20_000})
    summary = synthesize(config, out)
    used = summary["methods"][METHOD]
    assert summary["stopped"] == "maximum_tokens of 20000"
    assert 15_000 < used["prompt_tokens"] + used["completion_tokens"] == 120 * server.requests <= 20_000
    # A raised limit goes on with what is there.
    assert synthesize(make_config(server.url, 200), out)["methods"][METHOD]["outcomes"] == 200
    assert sum(server.answered.values()) == 400
    config = make_config(server.url, 200, concurrency=4, budget={"maximum_cost": 0.01})
    assert 0.005 < synthesize(config, tmp_path / "money")["methods"][METHOD]["cost"] <= 0.01


def test_prices_by_hand(make_config: MakeConfig, out: Path) -> None:
    """Each request takes 100 + 20 tokens at 1 and 2 a million: 140 millionths."""
    with Loopback(ScriptedModel(wrong_corrections=0, false_verdicts=0)) as server:
        used = synthesize(make_config(server.url, 10), out)["methods"][METHOD]
    assert (used["requests"], used["records"]) == (20, 10)
    assert used["cost"] == pytest.approx(20 * 140e-6)
    assert used["cost_per_record"] == pytest.approx(280e-6)
    assert used["cost_per_token"] == pytest.approx(20 * 140e-6 / used["tokens"])


def test_methods_capped_alike_end_at_the_same_tokens(
    make_config: MakeConfig, server: Loopback, out: Path, tmp_path: Path
) -> None:
    methods = {METHOD: TUTORSHIP, "retrospective_enhancement": {}}
    config = make_config(server.url, 200, methods=methods, budget={"accepted_tokens": 2000})
    summary = synthesize(config, out)["methods"]
    assert server.requests < 300  # and nothing is paid far beyond the cap
    by_seeds = make_config(server.url, 200, methods=methods, budget={"seeds": 30})
    equal = synthesize(by_seeds, tmp_path / "seeds")["methods"]
    for method in methods:
        assert 1900 < summary[method]["tokens"] <= 2000
        assert summary[method]["capped"]
        assert equal[method]["outcomes"] == 30


def test_shards_split_the_seeds_without_rest_or_overlap(
    make_config: MakeConfig, server: Loopback, out: Path
) -> None:
    for number in range(3):
        synthesize(make_config(server.url, 31), out, SeedShard(number, 3))
    found = [seed for number in range(3) for seed in ends(out, f"shard-0000{number}-of-00003")]
    assert sorted(found) == [seed.id for seed in make_seeds(31)]
    assert SeedShard.parse("2/3") == SeedShard(2, 3)
    for bad in ("3/3", "1", "a/2", "0/0", "-1/2"):
        with pytest.raises(DataError, match="shard"):
            SeedShard.parse(bad)


def test_a_record_is_traced_to_its_requests(make_config: MakeConfig, server: Loopback, out: Path) -> None:
    synthesize(make_config(server.url), out)
    record = accepted(out)[0]
    student, teacher = trace(out, record["id"])["requests"]
    assert record["question"] in student["request"]["messages"][0]["content"]
    assert student["text"] in teacher["request"]["messages"][-1]["content"]
    assert record["solution"].startswith(student["text"].splitlines()[0])
    with pytest.raises(DataError, match="no accepted record 'nobody'"):
        trace(out, "nobody")


@pytest.mark.parametrize("concurrency", [1, 32])
def test_a_seed_may_come_twice_but_no_id(
    make_config: MakeConfig, server: Loopback, tmp_path: Path, concurrency: int
) -> None:
    seeds = make_seeds(3)
    config = make_config(server.url, [*seeds, seeds[0]], concurrency=concurrency)
    assert synthesize(config, tmp_path / "out")["methods"][METHOD]["outcomes"] == 3
    twins = [seeds[0], seeds[1].model_copy(update={"id": seeds[0].id})]
    with pytest.raises(DataError, match="two different problems"):
        synthesize(make_config(server.url, twins, concurrency=concurrency), tmp_path / "twins")


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.bz2": bz2.compress,
    ".jsonl.zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_seeds_are_read_packed_or_not(make_config: MakeConfig, tmp_path: Path, suffix: str) -> None:
    plain = make_config(NOBODY, 30)
    whole, path = Path(plain.seeds[0]).read_bytes(), tmp_path / f"packed{suffix}"
    path.write_bytes(PACKERS[suffix](whole))
    packed = plain.model_copy(update={"seeds": (str(path),)})
    assert check_seeds(packed) == check_seeds(plain) == (30, hashlib.sha256(whole).hexdigest())
    assert [seed for _, seed in read_seeds(packed.seeds, SeedShard(1, 3))] == make_seeds(30)[1::3]
    for bad in (b"{oops}\n", b'{"id": "x"}\n', b"[1]\n", b'{"question": "\xff"}\n'):
        path.write_bytes(PACKERS[suffix](whole + bad))
        with pytest.raises(DataError, match=rf"packed{re.escape(suffix)}:31: "):
            synthesize(packed, tmp_path / "out")  # nobody listens: a request would be another error


def test_the_command_shows_no_key_anywhere(make_config: MakeConfig, server: Loopback, tmp_path: Path) -> None:
    key = server.key = "sk-very-secret-1234"
    command = [sys.executable, "tools/synthesize.py", str(tmp_path / "config.yaml")]
    environment = os.environ | {"TEST_KEY": key, "PYTHONPATH": str(ROOT)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        whole = [*command, "--out", str(tmp_path / "out"), *more]
        return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    keyed = {"model": "test-model", "endpoints": [server.url], "key_variable": "TEST_KEY"}
    config = make_config(server.url, servers={"student": keyed, "teacher": keyed})
    (tmp_path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    preview = run("--preview")
    assert server.requests == 0
    assert "What is 0 + 7?" in preview.stdout
    tried, done = run("--pilot", "2"), run()
    assert done.returncode == 0, done.stderr
    assert "accepted" in tried.stdout
    assert re.search(r"tutorship_amplification +outcomes +20\b", done.stdout)
    server.key = "sk-another"
    failed = run("seed=9", "--out", str(tmp_path / "out2"))
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    for text in (preview.stdout, tried.stdout, done.stdout, done.stderr, failed.stderr):
        assert key not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_the_first_prompts_are_whole(make_config: MakeConfig) -> None:
    methods = {METHOD: TUTORSHIP, "response_diversification": {"server": "teacher", "sampling": SAMPLING}}
    shown = first_prompts(make_config(NOBODY, methods=methods))
    assert list(shown) == ["response_diversification", METHOD]
    assert all("What is 0 + 7?" in prompt for prompt in shown.values())
    tagged = [seed.model_copy(update={"question": "<check>?"}) for seed in make_seeds(1)]
    shown = first_prompts(make_config(NOBODY, tagged, methods=methods))
    assert set(shown.values()) == {"none: seed imitates our tags"}


def test_a_pilot_counts_ends_and_its_answers_are_kept(
    make_config: MakeConfig, server: Loopback, out: Path
) -> None:
    config = make_config(server.url, 300)
    counted = pilot(config, out, 60)[METHOD]
    assert (server.requests, counted.total()) == (120, 60)
    assert 0 < counted["accepted"] < 60
    assert synthesize(config, out)["methods"][METHOD]["outcomes"] == 300
    assert server.requests == 600
