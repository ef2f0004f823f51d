"""The rehearsal: the real client and the real verification on answers of a script."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.records import Problem

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny" / "paper" / "synthesis.yaml"
SEEDS = 60


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rehearse(folder: Path) -> Path:
    """The tiny grid's synthesis on a few seeds."""
    seeds = training_problems(ProblemMix(train_problems=SEEDS, step_shares=(0.4, 0.3, 0.3)), 7)
    lines = (seed.model_dump_json() + "\n" for seed in seeds)
    (folder / "seeds.jsonl").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools" / "synthesize.py"), str(CONFIG), "--scripted"]
    command += [f'seeds=["{folder}/seeds.jsonl"]', f"budget.seeds={SEEDS}", "--out", str(folder / "out")]
    command += ["tokenizer=null"]  # the grid's is made with its corpora
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return folder / "out" / "shard-00000-of-00001"


def test_all_four_methods_yield_records_that_are_right(tmp_path: Path) -> None:
    found = rehearse(tmp_path)
    seeds = {row["question"]: row for row in rows(tmp_path / "seeds.jsonl")}
    records = {
        path.parent.name: [Problem.model_validate(row) for row in rows(path)]
        for path in found.glob("*/accepted.jsonl")
    }
    assert len(records) == 4
    assert len(records["response_diversification"]) > 0.9 * SEEDS
    assert len(records["query_expansion"]) > 1.5 * SEEDS  # two of each seed
    assert {r.language for r in records["query_expansion"]} == {"en", "zh"}
    assert 0.3 * SEEDS < len(records["tutorship_amplification"]) < 0.7 * SEEDS
    several = sum(len(row["solution"].splitlines()) > 2 for row in seeds.values())
    assert len(records["retrospective_enhancement"]) == 2 * several
    assert all(record.solution.count("<|back|>") == 2 for record in records["retrospective_enhancement"])
    for record in records["tutorship_amplification"]:
        attempt = extract_answer(record.solution.splitlines()[-1], record.language)
        assert record.answer == seeds[record.question]["answer"]
        assert attempt.text is None or grade(record.answer, attempt.text).status != "wrong"
    rejected = {row["reason"] for row in rows(found / "tutorship_amplification" / "rejected.jsonl")}
    assert rejected == {"attempt already right"}
    new = [record for record in records["query_expansion"] if record.question not in seeds]
    assert len(new) > 0.9 * len(records["query_expansion"])
