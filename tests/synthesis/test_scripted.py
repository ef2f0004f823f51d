"""The rehearsal: the real client and the real verification on answers of a script."""

import subprocess
import sys
from pathlib import Path

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.records import Problem
from tests.synthesis.conftest import FIRST, ROOT, read, write_seeds

CONFIG = "configs/tiny/paper/synthesis.yaml"
SEEDS = 60


def test_all_four_methods_yield_records_that_are_right(tmp_path: Path) -> None:
    """The tiny grid's synthesis on a few seeds."""
    made = list(training_problems(ProblemMix(train_problems=SEEDS, step_shares=(0.4, 0.3, 0.3)), 7))
    path, seeds = write_seeds(tmp_path / "seeds.jsonl", made), {seed.question: seed for seed in made}
    command = [sys.executable, "-m", "megatron_mathcpt", "synthesize", CONFIG, "--scripted"]
    command += ["--out", str(tmp_path), f'seeds=["{path}"]', f"budget.seeds={SEEDS}", "tokenizer=null"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    records = {
        path.parent.name: [Problem.model_validate(row) for row in read_json_lines(path)]
        for path in (tmp_path / FIRST).glob("*/accepted.jsonl")
    }
    assert len(records) == 4
    assert len(records["response_diversification"]) > 0.9 * SEEDS
    assert len(records["query_expansion"]) > 1.5 * SEEDS  # two of each seed
    assert {r.language for r in records["query_expansion"]} == {"en", "zh"}
    assert 0.3 * SEEDS < len(records["tutorship_amplification"]) < 0.7 * SEEDS
    several = sum(len(seed.solution.splitlines()) > 2 for seed in seeds.values())
    assert len(records["retrospective_enhancement"]) == 2 * several
    assert all(record.solution.count("<|back|>") == 2 for record in records["retrospective_enhancement"])
    for record in records["tutorship_amplification"]:
        attempt = extract_answer(record.solution.splitlines()[-1], record.language)
        assert record.answer == seeds[record.question].answer
        assert attempt.text is None or grade(record.answer, attempt.text).status != "wrong"
    assert {row["reason"] for row in read(tmp_path, "rejected")} == {"attempt already right"}
    new = [record for record in records["query_expansion"] if record.question not in seeds]
    assert len(new) > 0.9 * len(records["query_expansion"])
