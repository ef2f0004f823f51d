"""A judge behind a real server, beside the rules: counts by hand, replies kept, scores untouched."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.evaluation.second_opinion import compare, judge_prompt, read_opinion
from megatron_mathcpt.formats.manifest import write_manifest
from tests.evaluation.conftest import write_lines
from tests.support.fake_server import Loopback

ROOT = Path(__file__).resolve().parents[2]


def _row(name: str, gold: str, output: str, verdict: str) -> dict[str, Any]:
    return {
        "id": name,
        "correct": verdict == "correct",
        "verdict": verdict,
        "reason": "value",
        "extracted": output.rpartition(" ")[2],
        "gold": gold,
        "question": f"Question {name}?",
        "output": output,
    }


ROWS = [
    _row("a", "7", "It is 7", "correct"),
    _row("b", "8", "It is 9", "wrong"),
    _row("c", "f", "It is f", "ungraded"),
    _row("d", "5", "It is 5 but mumble", "correct"),
]


def _judge(prompt: str) -> str:
    """Right when the reference answer stands in the student's text; some answers confuse it."""
    gold = re.search("Reference answer: (.*)", prompt)
    answer = prompt.split("-----")[1]
    assert gold
    if "mumble" in answer:
        return "I cannot tell."
    return f"Let me see.\n**Verdict: {'right' if gold.group(1) in answer else 'wrong'}**"


@pytest.mark.parametrize(
    ("reply", "opinion"),
    [
        ("Verdict: right", True),
        ("So it is wrong.\n**Verdict:** Wrong.", False),
        ("Verdict: right or wrong", None),
        ("Verdict: right\nNo, wait.", None),
        ("right", None),
        ("", None),
    ],
)
def test_only_a_verdict_at_the_end_counts(reply: str, opinion: bool | None) -> None:
    assert read_opinion(reply) is opinion


def test_counts_by_hand() -> None:
    found = compare(ROWS, [True, False, True, None])
    places = [[row["id"] for row in found.pop(f"only_{side}_right")] for side in ("rules", "judge")]
    assert places == [["d"], ["c"]]
    assert found == {
        "n": 4,
        "rules_correct": 2,
        "judge_correct": 2,
        "agreement": 0.5,
        "rules_ungraded": 1,
        "judge_without_verdict": 1,
    }


def test_the_judge_sees_the_first_answer_only() -> None:
    prompt = judge_prompt(_row("a", "7", "It is 7\n\nQuestion: What is 8?", "correct"))
    assert "It is 7" in prompt
    assert "What is 8?" not in prompt


def test_the_tool_asks_once_and_changes_no_score(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    samples = write_lines(folder / "samples_sums.jsonl", ROWS)
    write_manifest(folder, "evaluation", inputs={}, counts={}, config={})
    before = samples.read_bytes()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUDGE_KEY": "secret-key"}
    command = [sys.executable, "tools/second_opinion.py", str(folder), "--model", "test-model"]
    with Loopback(_judge, key="secret-key") as server:
        command += ["--endpoint", server.url, "--key-variable", "JUDGE_KEY"]
        for _ in range(2):
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        assert server.requests == len(ROWS)
        refused = subprocess.run(
            [*command[:2], str(folder), "--model", "other", "--endpoint", server.url],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: server 'judge'")
    task = json.loads((tmp_path / "evaluation_judge.json").read_text())["tasks"]["sums"]
    assert [task["agreement"], task["only_judge_right"][0]["id"]] == [0.5, "c"]
    assert samples.read_bytes() == before
    written = [path.read_text() for path in tmp_path.glob("evaluation_judge*")]
    assert len(written) == 2
    assert not any("secret-key" in text for text in [*written, done.stdout, done.stderr])
