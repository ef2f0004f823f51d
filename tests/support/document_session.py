"""The commands in fenced `bash` blocks of a Markdown page, and a folder with the names that they use."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from tests.support.json_lines import write_json_lines
from tests.support.small_models import write_byte_llama

ROOT = Path(__file__).resolve().parents[2]
IN_A_PROCESS = ("train", "run", "quickstart")  # verbs that replace the process, or start others


class Command(NamedTuple):
    line: int
    text: str  # of one line, or of several that a backslash joins; without comments

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(text: str, kind: str) -> Iterator[tuple[int, str, str]]:
    """Number of the first line, paragraph before, and text of each fenced block of this kind."""
    for found in re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: found.start()].rstrip().rpartition("\n\n")[2]
        yield text.count("\n", 0, found.start()) + 2, before, found[1]


def commands(text: str) -> list[Command]:
    """The commands of a page, in order."""
    found = []
    for first, _, block in blocks(text, "bash"):
        joined = block.replace("\\\n", " \0")  # the same number of lines
        number = first
        for line in joined.splitlines():
            if line.strip():
                text = re.sub(r"(^|\s)#.*", "", line.replace("\0", ""))
                found.append(Command(number, " ".join(text.split())))
            number += 1 + line.count("\0")
    return found


def verb_of(words: Sequence[str]) -> tuple[list[str], Any]:
    """The words of `mathcpt ...` that name a verb, and the verb; `KeyError` for an unknown one."""
    command, named = get_command(build_app()), list[str]()
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
        named.append(word)
    return named, command


def parse(words: Sequence[str]) -> None:
    """Parse the command line `mathcpt WORDS` as the command would, running nothing."""
    named, command = verb_of(words)
    command.make_context(" ".join(named), list(words[len(named) :]))


def make_session(folder: Path, *, links: bool = True) -> Path:
    """Fill a folder with what pages name: a tiny model, problems, benchmark sets; with `links`, our tree."""
    config = write_byte_llama(folder / "models" / "base") / "config.json"
    longer = json.loads(config.read_text()) | {
        "max_position_embeddings": 512
    }  # answers have up to 256 tokens
    config.write_text(json.dumps(longer))
    problems = training_problems(ProblemMix(train_problems=220, step_shares=(0.5, 0.3, 0.2)), 3)
    rows = [
        {"id": f"own-{n}", "question": one.question, "solution": one.solution, "answer": one.answer}
        for n, one in enumerate(problem for problem in problems if problem.language == "en")
    ]
    items = [row | {"type": "number", "lang": "en"} for row in rows]
    write_json_lines(folder / "my.jsonl", rows[20:])
    write_json_lines(folder / "heldout.jsonl", items[:8])
    write_json_lines(folder / "texts.jsonl", ({"text": row["solution"]} for row in rows[:9]))
    for name in ("gsm8k", "math", "gaokao", "zhongkao"):
        (folder / "benchmarks" / name).mkdir(parents=True)
        write_json_lines(folder / "benchmarks" / name / "test.jsonl", items[8:10])
        write_json_lines(folder / "benchmarks" / name / "fewshot.jsonl", items[10:12])
    for name in ("configs", "launch", "megatron_mathcpt", "tests", "tools") if links else ():
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_verb(words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run `mathcpt WORDS` in the current folder; its status, and all that it said."""
    if words[0] in IN_A_PROCESS:
        command = [sys.executable, "-m", "megatron_mathcpt", *words]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    result: Result = CliRunner().invoke(build_app(), list(words), env=dict(environment))
    return result.exit_code, f"{result.output}{result.exception or ''}"
