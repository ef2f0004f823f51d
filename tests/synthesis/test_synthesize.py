"""Whole runs against the fake server: outcomes, resume, budgets, shards, lineage, prices."""

import hashlib
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.config.synthesis import Seeds, SynthesisConfig
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.errors import DataError, ManifestError, ServerError
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.seeds import SeedShard, check_seeds, read_seeds
from megatron_mathcpt.synthesis.store import Store, trace
from megatron_mathcpt.synthesis.synthesize import synthesize
from tests.support.fake_server import LASTING, PASSING, ScriptedModel, make_seeds, mixed_faults
from tests.support.json_lines import read_json_lines
from tests.support.synthesis_runs import (
    FIRST_SHARD,
    METHOD,
    ROOT,
    TUTORSHIP,
    Trial,
    assert_same,
    outcome_seeds,
    read_outcomes,
    wrong_answers,
)

SEEDS, KILLS = 2000, 20


def command(trial: Trial, config: SynthesisConfig, out: str = "out") -> list[str]:
    path = trial.folder / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    verb = ("-m", "megatron_mathcpt", "synthesize")
    return [sys.executable, *verb, str(path), "--out", str(trial.folder / out)]


def change_store(out: Path, *statements: str) -> None:
    """Make the run unfinished and change its store."""
    (out / FIRST_SHARD / "manifest.json").unlink()
    with closing(sqlite3.connect(out / FIRST_SHARD / ".store" / "synthesis.sqlite")) as base:
        for statement in statements:
            base.execute(statement)
        base.commit()


def test_every_wrong_final_answer_is_caught(trial: Trial) -> None:
    summary = trial.run(300)
    assert not wrong_answers(trial.out)
    for record in read_outcomes(trial.out):
        first, *_, last = record["solution"].splitlines()
        assert f"= {record['answer']}" in last + first
    verdicts, lies = summary["verdicts"], trial.server.model.mistakes  # type: ignore[attr-defined]
    assert verdicts["correction: server -, mathematics wrong"] == len(lies["correction"]) > 10
    pairs = ("correct, mathematics wrong", "wrong, mathematics correct")
    assert sum(verdicts[f"attempt: server {pair}"] for pair in pairs) == len(lies["verdict"]) > 10
    assert summary["outcomes"] == summary["accepted"] + sum(summary["rejected"].values()) == 300
    assert len(read_outcomes(trial.out, "rejected")) == sum(summary["rejected"].values())


def test_records_are_problems_with_lineage_and_the_folder_is_complete(trial: Trial) -> None:
    trial.run()
    asked = trial.server.requests
    again = trial.run()
    assert trial.server.requests == asked
    manifest = load_manifest(trial.out / FIRST_SHARD, "synthesis")
    assert manifest.counts["methods"][METHOD] | {"stopped": None} == again
    assert not [name for name in manifest.outputs if "store" in name]
    record, *others = read_outcomes(trial.out)
    assert {Problem.model_validate(row).source for row in (record, *others)} == {METHOD}
    student, teacher = trace(trial.out, record["id"])["requests"]
    assert record["question"] in student["request"]["messages"][0]["content"]
    assert student["text"] in teacher["request"]["messages"][-1]["content"]
    assert record["solution"].startswith(student["text"].splitlines()[0])
    trial.run([seed.model_copy(update={"id": f'a "{seed.id}"\\c\td'}) for seed in make_seeds(9)], "odd")
    found = read_outcomes(trial.folder / "odd")[0]
    assert trace(trial.folder / "odd", found["id"])["record"] == found
    rejected = read_outcomes(trial.out, "rejected")[0]
    judged = trace(trial.out, f"{rejected['seed']}/{METHOD}/{rejected['sample']}")
    assert judged["record"] == rejected and judged["requests"][-1]["text"] == rejected["raw"]
    with pytest.raises(DataError, match="no record or case 'nobody'"):
        trace(trial.out, "nobody")
    with pytest.raises(ManifestError, match="another config 'seed'"):
        trial.run(seed=2)


def test_faults_end_in_one_outcome_each(trial: Trial) -> None:
    """All faults at once: transient ones leave no trace, permanent ones are a named rejection."""
    trial.server.faults = mixed_faults(0.3, 0.2)
    trial.run(300, patience_seconds=6)  # the silent ones' end
    assert set(trial.server.injected) == {*PASSING, *LASTING}
    assert max(trial.server.answered.values()) == 1  # no answer is paid twice
    assert sorted(outcome_seeds(trial.out)) == [seed.id for seed in make_seeds(300)]
    assert not wrong_answers(trial.out)
    assert {row["reason"] for row in read_outcomes(trial.out, "rejected")} >= {*LASTING.values()} - {None}


def test_a_stopped_run_resumes(trial: Trial) -> None:
    server = trial.server
    server.faults = lambda _p, _a: "401" if sum(server.answered.values()) >= 30 else None
    with pytest.raises(ServerError, match="401"):
        trial.run(40, concurrency=4)
    assert not (trial.out / FIRST_SHARD / "manifest.json").exists()
    server.faults = lambda prompt, _a: "500" if "is 33 +" in prompt else None
    assert trial.run(40)["unanswered"] == {"server: status 500": 1}
    assert not (trial.out / FIRST_SHARD / "manifest.json").exists()
    server.faults = lambda _p, _a: None  # a seed without any reply is retried
    assert not trial.run(40)["unanswered"]
    change_store(trial.out, "DELETE FROM outcomes")  # as if killed after the replies, before the outcomes
    trial.run(40)
    assert sum(server.answered.values()) == 80  # each reply is paid once
    trial.run(40, "whole")
    assert_same(trial.out, trial.folder / "whole")


def test_another_model_behind_the_same_address_is_refused(trial: Trial) -> None:
    trial.run()
    change_store(trial.out, "DELETE FROM requests", "DELETE FROM outcomes")
    with Store.open(trial.out / FIRST_SHARD) as store:
        store.forget("replies as student")
        store.remember("replies as student", "old-model")
    with pytest.raises(ServerError, match="answers as model 'test-model', before as 'old-model'"):
        trial.run()
    synthesize(trial.config(), trial.out, accept_model=True)
    trial.server.name = "other-model"
    with pytest.raises(ServerError, match="serves other-model, not 'test-model'"):
        trial.run(out="other")


def test_limits_of_tokens_and_money_are_never_exceeded(trial: Trial) -> None:
    trial.server.delay_seconds = 0.01
    used = trial.run(200, concurrency=4, budget={"maximum_tokens": 20_000})
    assert used["stopped"] == "maximum_tokens of 20000"
    # Less than the limit, as the four in flight count with a token for each byte of their prompts.
    assert 10_000 < used["prompt_tokens"] + used["completion_tokens"] == 120 * trial.server.requests <= 20_000
    # With a higher limit the run resumes from what is stored.
    assert trial.run(200)["outcomes"] == 200
    assert sum(trial.server.answered.values()) == 400
    assert 0.01 < trial.run(200, "money", concurrency=4, budget={"maximum_cost": 0.025})["cost"] <= 0.025


def test_prices_by_hand(trial: Trial) -> None:
    """Each request takes 100 + 20 tokens at 1 and 2 a million: 140 millionths."""
    trial.server.model = ScriptedModel(wrong_corrections=0, false_verdicts=0)
    used = trial.run(10)
    assert (used["requests"], used["records"]) == (20, 10)
    assert used["cost"] == pytest.approx(20 * 140e-6)
    assert used["cost_per_record"] == pytest.approx(280e-6)
    assert used["cost_per_token"] == pytest.approx(20 * 140e-6 / used["tokens"])


def test_methods_with_the_same_cap_end_at_the_same_tokens(trial: Trial) -> None:
    methods = {METHOD: TUTORSHIP, "retrospective_enhancement": {}}
    config = trial.config(200, methods=methods, budget={"accepted_tokens": 2000})
    summary = synthesize(config, trial.out)["methods"]
    assert trial.server.requests < 300  # and little is paid beyond the cap
    by_seeds = trial.config(200, methods=methods, budget={"seeds": 30})
    equal = synthesize(by_seeds, trial.folder / "seeds")["methods"]
    for method in methods:
        assert 1900 < summary[method]["tokens"] <= 2000
        assert summary[method]["capped"]
        assert equal[method]["outcomes"] == 30


def test_a_rehearsal_a_smaller_budget_and_other_shards_change_no_data(trial: Trial) -> None:
    config = trial.config(20)
    synthesize(config, trial.out, scripted=True)
    with pytest.raises(ManifestError, match="another config 'scripted'"):
        synthesize(config, trial.out)
    local = trial.config(20, methods={"retrospective_enhancement": {}})
    whole = synthesize(local, trial.folder / "local")
    fewer = trial.config(20, methods={"retrospective_enhancement": {}}, budget={"seeds": 3})
    assert synthesize(fewer, trial.folder / "local") == whole
    with pytest.raises(DataError, match="another number of shards, which have the same seeds; give --shard"):
        synthesize(local, trial.folder / "local", SeedShard(0, 2))


def test_shards_partition_the_seeds(trial: Trial) -> None:
    for number in range(3):
        synthesize(trial.config(31), trial.out, SeedShard(number, 3))
    found = [seed for number in range(3) for seed in outcome_seeds(trial.out, f"shard-0000{number}-of-00003")]
    assert sorted(found) == [seed.id for seed in make_seeds(31)]
    assert SeedShard.parse("2/3") == SeedShard(2, 3)
    for bad in ("3/3", "1", "a/2", "0/0", "-1/2"):
        with pytest.raises(DataError, match="shard"):
            SeedShard.parse(bad)


@pytest.mark.parametrize("concurrency", [1, 32])
def test_a_seed_may_be_repeated_but_no_id(trial: Trial, concurrency: int) -> None:
    first, second, third = make_seeds(3)
    assert trial.run([first, second, third, first], concurrency=concurrency)["outcomes"] == 3
    with pytest.raises(DataError, match="two different problems"):
        trial.run([first, second.model_copy(update={"id": first.id})], "twins", concurrency=concurrency)


@pytest.mark.parametrize("packed", [False, True])
def test_seeds_are_read_compressed_or_not(trial: Trial, packed: bool) -> None:
    plain, path = trial.config(30), trial.folder / ("x.jsonl.zst" if packed else "x.jsonl")
    whole = Path(plain.seeds.paths[0]).read_bytes()
    pack = zstandard.ZstdCompressor().compress if packed else bytes
    path.write_bytes(pack(whole))
    config = plain.model_copy(update={"seeds": Seeds(path=str(path))})
    found = check_seeds(config)
    assert (found.count, found.sha256) == (30, hashlib.sha256(whole).hexdigest())
    assert [seed for _, seed in read_seeds(found, SeedShard(1, 3))] == make_seeds(30)[1::3]
    for bad in (b"{oops}\n", b'{"id": "x"}\n', b"[1]\n", b'{"question": "\xff"}\n'):
        path.write_bytes(pack(whole + bad))
        with pytest.raises(DataError, match=rf"{path.name}:31: "):
            synthesize(config, trial.out)
    assert trial.server.requests == 0


def test_the_key_is_printed_and_stored_nowhere(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    key = trial.server.key = "sk-very-secret-1234"
    monkeypatch.setenv("TEST_KEY", key)
    server = {"model": "test-model", "endpoints": [trial.server.url], "key_variable": "TEST_KEY"}
    config = trial.config(servers=dict.fromkeys(("student", "teacher"), server))

    def run(*more: str, out: str = "out") -> subprocess.CompletedProcess[str]:
        words = [*command(trial, config, out), *more]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    preview = run("--preview")
    assert trial.server.requests == 0
    assert "What is 0 + 7?" in preview.stdout
    tried, done = run("budget.seeds=2"), run()
    assert done.returncode == 0, done.stderr
    assert "accepted" in tried.stdout
    assert re.search(r"tutorship_amplification +outcomes +20\b", done.stdout)
    trial.server.key = "sk-another"
    failed = run("seed=9", out="out2")
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not any(key in said.stdout + said.stderr for said in (preview, tried, done, failed))
    for file in trial.folder.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes()


def test_all_four_methods_yield_records_that_are_right(trial: Trial) -> None:
    """The rehearsal of the tiny study: the real client and verification with the scripted server."""
    count, config = 60, str(trial.out.parent / "synthesis.yaml")
    study = load_study(ROOT / "configs" / "paper" / "study.yaml", Asked("tiny"))
    assert study.synthesis is not None
    Path(config).write_text(study.synthesis.as_yaml())
    made = list(training_problems(ProblemMix(train_problems=count, step_shares=(0.4, 0.3, 0.3)), 7))
    path, seeds = trial.config(made).seeds.paths[0], {seed.question: seed for seed in made}
    words = [sys.executable, "-m", "megatron_mathcpt", "synthesize", config, "--scripted"]
    words += ["--out", str(trial.out), f"seeds.path={path}", f"budget.seeds={count}", "tokenizer=null"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    records = {
        path.parent.name: [Problem.model_validate(row) for row in read_json_lines(path)]
        for path in (trial.out / FIRST_SHARD).glob("*/accepted.jsonl")
    }
    assert len(records) == 4
    assert len(records["response_diversification"]) > 0.9 * count
    assert len(records["query_expansion"]) > 1.5 * count  # two of each seed
    assert {r.language for r in records["query_expansion"]} == {"en", "zh"}
    # Each of four attempts is wrong with probability one half: 15 of 16 seeds have a wrong one.
    assert 0.85 * count < len(records["tutorship_amplification"]) <= count
    steps = [len(seed.solution.splitlines()) for seed in seeds.values()]
    assert len(records["retrospective_enhancement"]) == sum(min(2, n * (n - 1) // 2) for n in steps)
    assert all(record.solution.count("<back>") == 2 for record in records["retrospective_enhancement"])
    for record in records["tutorship_amplification"]:
        attempt = extract_answer(record.solution.splitlines()[-1], record.language)
        assert record.answer == seeds[record.question].answer
        assert attempt.text is None or grade(record.answer, attempt.text).status != "wrong"
    assert {row["reason"] for row in read_outcomes(trial.out, "rejected")} == {"attempt already right"}
    new = [record for record in records["query_expansion"] if record.question not in seeds]
    assert len(new) > 0.9 * len(records["query_expansion"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(trial: Trial) -> None:
    """Each seed has one outcome, and the files are those of an uninterrupted run."""
    server, out = trial.server, trial.out
    # Not more faults at first, since some are silent for ten seconds.
    server.faults, server.delay_seconds = mixed_faults(0.03, 0.05), 0.02
    config = trial.config(SEEDS, patience_seconds=10)  # no time-outs but those injected
    chance = random.Random(7)
    for kill in range(KILLS + 1):
        before = server.answered.total()
        process = subprocess.Popen(command(trial, config), cwd=ROOT, stderr=subprocess.DEVNULL)
        if kill < KILLS:
            while process.poll() is None and server.answered.total() == before:
                time.sleep(0.02)  # until its first reply
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
        assert process.wait(600) == (-9 if kill < KILLS else 0)
    assert Counter(outcome_seeds(out)) == Counter(seed.id for seed in make_seeds(SEEDS))
    assert not wrong_answers(out)
    # Replies in flight at a kill are lost, at most `concurrency` a kill; nothing else is requested twice.
    twice = sum(count - 1 for count in server.answered.values())
    assert twice <= KILLS * config.concurrency
    server.delay_seconds = 0
    server.attempts.clear()
    trial.run(SEEDS, "whole", patience_seconds=10)
    assert_same(out, trial.folder / "whole")
