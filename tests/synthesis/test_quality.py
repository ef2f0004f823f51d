"""What is said of a method's outcomes: bins, near-duplicates and samples, worked out by hand."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.records import JsonObject, Problem
from megatron_mathcpt.synthesis import synthesize
from megatron_mathcpt.synthesis.quality import Quality, count_near, sketch
from megatron_mathcpt.synthesis.seeds import SeedShard
from tests.support.fake_server import FakeServer, ScriptedModel
from tests.support.synthesis_runs import FIRST_SHARD, METHOD, NO_SERVER, build_config

LOCAL = "retrospective_enhancement"


def seed(name: str, words: int, lines: int, **changed: Any) -> Problem:
    """A problem whose tokens are its words, by `count_words`, with so many steps."""
    solution = "\n".join(f"{n}+1={n + 1}" for n in range(lines))
    question = " ".join(f"word{n}" for n in range(words - len(solution.split())))
    return Problem(id=name, question=question, solution=solution, answer="1", **changed)


def count_words(problem: Problem) -> int:
    return len(f"{problem.question} {problem.solution}".split())


def outcome(*records: Problem, **row: Any) -> JsonObject:
    made = {"reason": None, "detail": "", "raw": "", "claims": {}, "checks": {}, "disagreement": False}
    return made | {"records": [vars(record) for record in records]} | row


def filled(bins: dict[str, int]) -> dict[str, int]:
    return {low: number for low, number in bins.items() if number}


def test_lengths_before_and_after_are_counted_in_fixed_bins() -> None:
    seeds = [(0, seed("a", 31, 1)), (1, seed("b", 32, 7)), (2, seed("c", 9000, 60)), (3, seed("d", 96, 9))]
    found = Quality(count_words, iter(seeds))
    found.add(0, "a", 47, outcome(seed("a", 47, 2)))
    found.add(0, "a", 48, outcome(seed("a", 48, 8)))  # the second sample of the same seed
    found.add(2, "c", 700, outcome(seed("c", 300, 10), seed("c", 400, 11)))  # counted one by one
    found.add(3, "d", 0, outcome(reason="too few steps"))
    shown = found.as_json()
    assert (shown["seeds"], shown["measured_seeds"]) == (3, 3)  # b has no outcome
    assert filled(shown["tokens_before"]) == {"0": 1, "96": 1, "8192": 1}
    assert filled(shown["tokens_after"]) == {"32": 1, "48": 1, "256": 1, "384": 1}
    assert filled(shown["steps_before"]) == {"1": 1, "8": 1, "50": 1}
    assert filled(shown["steps_after"]) == {"2": 1, "8": 1, "10": 2}
    assert [*shown["steps_after"]][-3:] == ["20", "30", "50"]


def test_of_many_seeds_every_nth_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 25 seeds the 13 of shard 0/2 at even positions; every third of them, at most 5."""
    monkeypatch.setattr(synthesize, "MEASURED", 5)
    config = build_config(tmp_path, NO_SERVER, 25, methods={LOCAL: {}}, servers={})
    made = synthesize.synthesize(config, tmp_path / "out", SeedShard(0, 2))["methods"][LOCAL]
    shown = made["quality"]
    assert (shown["seeds"], shown["measured_seeds"], made["records"]) == (13, 5, 13)
    assert {pair["seed"]["id"] for pair in shown["pairs"]} == {f"seed-{n:06d}" for n in (0, 6, 12, 18, 24)}
    assert all(pair["records"][0]["solution"].count("<back>") == 2 for pair in shown["pairs"])
    empty = synthesize.synthesize(config, tmp_path / "empty", SeedShard(30, 31))["methods"][LOCAL]["quality"]
    assert (empty["seeds"], empty["pairs"], empty["near_duplicates"]["found"]) == (0, [], 0)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def test_near_duplicates_are_those_of_the_exact_similarity() -> None:
    """Pairs of 120 words, of which up to 19 differ, against the Jaccard similarity of their shingles."""
    random, errors, found = Random(3), [], dict[bool, list[int]]()
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst"]
    for _ in range(300):
        first = random.choices(words, k=120)
        second = [*first]
        for place in random.choices(range(120), k=random.randrange(20)):
            second[place] = random.choice(words)
        texts = " ".join(first), " ".join(second)
        one, other = map(shingles, texts)
        exact = len(one & other) / len(one | other)
        sketches = [*map(sketch, texts)]
        errors.append(np.mean(sketches[0] == sketches[1]) - exact)
        if abs(exact - 0.7) > 0.12:
            found.setdefault(exact > 0.7, []).append(count_near(sketches))
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.07  # 64 draws: 0.0625 at one half
    assert np.mean(found[True]) > 0.97 and np.mean(found[False]) < 0.03
    assert min(map(len, found.values())) > 40


def test_a_record_counts_once_however_many_are_like_it() -> None:
    texts = ["小明有三个苹果，他又买了五个。", "What is 1 + 1?", "", "小明有三个苹果，他又买了五个。"]
    assert (
        count_near([sketch(text) for text in (*texts, "WHAT IS 1 +1 ?", "What is 1 + 2?", "小", "小")]) == 3
    )
    assert count_near([]) == 0


def test_samples_are_the_first_of_their_kind_or_by_a_hash() -> None:
    problems = [(n, seed(f"s{n}", 20, 2)) for n in range(40)]
    found = Quality(count_words, iter(problems))
    check = {"found": "5", "verdict": "correct", "reason": "equal"}
    for number, problem in problems[:20]:
        found.add(
            number, problem.id, 0, outcome(reason="malformed: no <check>", detail="d", raw=f"{number}" * 900)
        )
    for number, problem in problems[20:]:
        verdicts = {"claims": {"attempt": "wrong"}, "checks": {"attempt": check}, "disagreement": True}
        lost = {"reason": "refused", "raw": "no"} if number % 2 else {}
        found.add(number, problem.id, 20, outcome(*([] if lost else [problem]), **verdicts, **lost))
    shown = found.as_json()
    malformed = shown["rejected"]["malformed: no <check>"]
    assert [row["seed"] for row in malformed] == ["s0", "s1", "s2", "s3", "s4"]
    assert malformed[1] == {"seed": "s1", "detail": "d", "text": "1" * 900}
    assert [row["seed"] for row in shown["rejected"]["refused"]] == ["s21", "s23", "s25"]
    assert {name: [row["seed"] for row in rows] for name, rows in shown["disagreements"].items()} == {
        "attempt: server wrong, mathematics correct": ["s20", "s21", "s22"]
    }
    assert shown["disagreements"].popitem()[1][1] == {
        "seed": "s21",
        "detail": "final answer 5 (equal)",
        "text": "no",
    }
    # The lowest of sha256("s20"), "s22", ...: by `printf s20 | sha256sum` and its like.
    assert [pair["seed"]["id"] for pair in shown["pairs"]] == ["s30", "s34", "s28", "s26", "s36"]
    assert shown["near_duplicates"]["compared"] == 10 and shown["near_duplicates"]["found"] == 9
    assert len(json.dumps(shown)) < 40_000


def test_the_terminal_shows_yields_and_malformed_replies(tmp_path: Path) -> None:
    """Of 20 lines with signs that cannot be printed, 12 are shown, and nothing that a terminal would obey."""
    scripted, bad = (
        ScriptedModel(wrong_attempts=1, wrong_corrections=0, false_verdicts=0),
        "no\u2028 tag\xad\n",
    )

    def model(prompt: str) -> str:
        return bad * 20 if "<check>" in prompt and "7 + 7" in prompt else scripted(prompt)

    with FakeServer(model) as server:
        path = tmp_path / "config.yaml"
        path.write_text(dump_yaml(build_config(tmp_path, server.url, 10)), encoding="utf-8")
        done = CliRunner(env={"COLUMNS": "140"}).invoke(
            build_app(), ["synthesize", str(path), "--out", str(tmp_path / "out")]
        )
    assert done.exit_code == 0, done.output
    assert not set(done.stdout) & {"\u2028", "\xad"}
    head, *lines = done.stdout.split("── tutorship_amplification, ")[1].splitlines()
    assert head.startswith("seed seed-000007: malformed")
    assert [line.split() for line in lines if line.startswith("no")] == [[r"no\u2028", r"tag\xad"]] * 12
    assert lines[-2] == "…"
    assert lines[-1].endswith(f"mathcpt report {tmp_path / 'out'}")
    row = next(line for line in done.stdout.splitlines() if "0.85" in line).split()
    tokens = json.loads((tmp_path / "out" / FIRST_SHARD / "summary.json").read_text())["methods"][METHOD][
        "tokens"
    ]
    assert row == [METHOD, "0.90", "0.85", f"{tokens / 9:.2f}", "1,163.90"]
