"""A fifth method, added to a copy of the package as its README.md says, run to accepted records."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.json_lines import read_json_lines
from tests.support.synthesis_runs import FIRST_SHARD, ROOT, SAMPLING, Trial

SECTION = '''
class Rewording(Section):
    """The seed's problem in other words."""

    server: str
    sampling: Sampling
    samples: int = 1


class Methods(Section):'''
FIELD = "    tutorship_amplification: TutorshipAmplification | None = None\n"
PROMPT = """variables: question
### user
Reword this problem and solve it, as <reworded>...</reworded><solution_1>...</solution_1>: $question
"""
GENERATOR = '''

def reword(case: Case) -> Conversation:
    """One record: the reworded question with its solution, which must reach the seed's answer."""
    reject_tags("seed", case.seed.question)
    (reply,) = yield (case.request(question=case.seed.question),)
    text = reply.usable_text()
    tags = read_tags(text, ("reworded", "solution_1"))
    verdicts = Verdicts(checks={"solution_1": verification.check_answer(case.seed, tags["solution_1"])})
    verification.reject_wrong_answers(case, verdicts, text)
    parts = [("solution_1", tags["solution_1"])]
    return Outcome((make_record(case, "prose", parts, question=tags["reworded"]),), verdicts=verdicts)


CONVERSATIONS["rewording"] = reword
'''


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path}: {old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def reply_to(prompt: str) -> str:
    """Reword every seed; every third solution is wrong, and one reply imitates a tag inside another."""
    number = int(re.findall(r"is (\d+) \+ 7", prompt)[0])
    total = number + 7 + (number % 3 == 0)
    question = "< Reworded >" if number == 1 else f"How much is 7 more than {number}?"
    solution = f"{number} + 7 = {total}. The answer is {total}."
    return f"<reworded>{question}</reworded><solution_1>{solution}</solution_1>"


def test_a_fifth_method_takes_two_files_and_a_prompt(trial: Trial, tmp_path: Path) -> None:
    package = shutil.copytree(ROOT / "megatron_mathcpt", tmp_path / "copy" / "megatron_mathcpt")
    # 1. config/synthesis.py: its section, and a field of its name in `Methods`.
    edit(package / "config" / "synthesis.py", "\nclass Methods(Section):", SECTION)
    edit(package / "config" / "synthesis.py", FIELD, FIELD + "    rewording: Rewording | None = None\n")
    # 2. Its prompt.
    (package / "synthesis" / "prompts" / "rewording.en.txt").write_text(PROMPT, encoding="utf-8")
    # 3. synthesis/tags.py: its tags; synthesis/four_methods.py: the generator, its name.
    methods = package / "synthesis" / "four_methods.py"
    edit(package / "synthesis" / "tags.py", "TAGS += [", 'TAGS += ["reworded", ')
    methods.write_text(methods.read_text(encoding="utf-8") + GENERATOR, encoding="utf-8")

    trial.server.model = reply_to
    tree = trial.config(12).model_dump(mode="json", exclude={"methods"})
    tree["methods"] = {"rewording": {"server": "student", "sampling": SAMPLING}}
    (tmp_path / "config.yaml").write_text(json.dumps(tree), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_mathcpt", "synthesize", "../config.yaml", "--out", "../out"]
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    for _ in range(2):  # the second run finds everything complete
        done = subprocess.run(
            command, cwd=package.parent, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"rewording +accepted +7\b", done.stdout)
    assert trial.server.requests == 12
    folder = tmp_path / "out" / FIRST_SHARD / "rewording"
    accepted, rejected = (read_json_lines(folder / f"{kind}.jsonl") for kind in ("accepted", "rejected"))
    assert accepted[0]["question"] == "How much is 7 more than 2?"
    assert (accepted[0]["solution"], accepted[0]["answer"]) == ("2 + 7 = 9.", "9")
    reasons = [row["reason"] for row in rejected]
    assert sorted(reasons) == ["malformed: <reworded> is not closed", *["wrong final answer"] * 4]
