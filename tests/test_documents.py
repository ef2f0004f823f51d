"""Every command of every document runs here, or is checked without its effect; every path in them exists.

The pages share one folder, in which their commands run in order. What cannot run has its reason in `INSTEAD`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.document_session import (
    ROOT,
    Command,
    blocks,
    commands,
    make_session,
    parse,
    run_verb,
    verb_of,
)

PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        *("README.md", "tools/README.md", "configs/README.md", "launch/README.md"),
        *("megatron_mathcpt/README.md", "megatron_mathcpt/planner/README.md", "megatron_mathcpt/PYTHON.md"),
    )
}
TOP = ("configs", "launch", "megatron_mathcpt", "tests", "tools")


def unchanged(words: list[str]) -> None:
    """Parse the command line; run nothing."""
    if words[0] == "mathcpt":
        parse(words[1:])


def script(words: list[str]) -> None:
    """A shell script that is there and can be parsed."""
    subprocess.run(["bash", "-n", ROOT / words[1]], check=True)


def dry(*more: str, **other: str) -> Callable[[list[str]], list[str]]:
    """The command with more words, and other verbs in place of its own."""
    return lambda words: [*(other.get(word, word) for word in words), *more]


# What stands in for commands that begin so, and why they do not run here. The first that fits counts.
Instead = Callable[[list[str]], list[str] | None]
INSTEAD: dict[str, tuple[Instead, str]] = {
    r"bash launch/quickstart.sh": (script, "12 minutes; tests/test_quickstart.py runs its study, smaller"),
    r"bash tests/run.sh": (script, "runs this test"),
    r"bash launch/environment.sh": (
        script,
        "installs; tests/test_wheel.py runs it on a finished environment",
    ),
    r"bash launch/gpu.sh": (script, "compiles for minutes; tests/launch/test_gpu_environment.py"),
    r"\. \.venv/bin/activate": (unchanged, "the environment is this one"),
    r"docker |enroot ": (unchanged, "needs NVIDIA's image"),
    r"python tests/benchmarks/planner_calibration.py": (
        unchanged,
        "a minute; tests/planner/ compares its output",
    ),
    r"MATHCPT_BENCHMARKS=\S+ lm_eval ": (unchanged, "tests/evaluation/test_tasks.py runs lm-eval's command"),
    r"mathcpt quickstart --model": (unchanged, "a minute; tests/experiment/test_templates.py runs it"),
    r"mathcpt download (?!--list)": (unchanged, "the network; tests/data/ have a server of its protocol"),
    r"mathcpt convert to-hf .* --push ": (unchanged, "the network; tests/checkpoint/test_export.py"),
    r"mathcpt average ": (unchanged, "needs a second run; tests/checkpoint/test_average.py"),
    r"mathcpt submit .*--dry-run": (dry(), ""),
    r"mathcpt submit configs/\w+/study.yaml ": (
        dry("--dry-run", "--only", "base1"),
        "needs Slurm; all is slow",
    ),
    r"mathcpt submit ": (dry("--dry-run"), "needs Slurm"),
    r"mathcpt run ": (dry(run="dry-run"), "an hour"),
    r"mathcpt synthesize synthesis.yaml --out synthesized( budget.seeds=20)?$": (
        dry("--preview"),
        "needs a server",
    ),
    r"mathcpt report synthesized$": (dry(synthesized="rehearsed"), "needs a server's replies"),
}


def instead(text: str) -> Instead | None:
    return next((way for start, (way, _) in INSTEAD.items() if re.match(start, text)), None)


class Session:
    """The folder of all pages, in which a page's commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_session(folder)

    def run(self, text: str) -> None:
        """Run a page's commands; files that pages write by `mathcpt new` are not there at its start."""
        for file in self.folder.glob("*.yaml"):
            file.unlink()
        for _, before, block in blocks(text, "yaml"):
            (self.folder / re.findall(r"`(\w+\.yaml)`", before)[-1]).write_text(block)
        for command in commands(text):
            self._run(command)

    def _run(self, command: Command) -> None:
        words: list[str] | None = command.words
        if (way := instead(command.text)) is not None:
            words = way(command.words)
        if words is None:
            return
        assert words[0] == "mathcpt", f"line {command.line}: {command.text}: neither runs nor is in INSTEAD"
        status, said = run_verb(words[1:], {"HF_HUB_OFFLINE": "1"})
        assert status == 0, f"line {command.line}: {command.text}\n{said}"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """After the commands of the first page, whose corpus, run and scores the others use."""
    made = Session(tmp_path_factory.mktemp("session"))
    before = Path.cwd()
    os.chdir(made.folder)
    try:
        made.run(PAGES["README.md"])
    finally:
        os.chdir(before)
    shutil.copytree(made.folder / "runs" / "mine", made.folder / "runs" / "paper" / "base2")
    return made


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands(text)])
def test_every_command_of_a_page_runs(page: str, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(session.folder)
    if page != "README.md":
        session.run(PAGES[page])
    for name in ("corpora/mine", "runs/mine", "models/mine", "scores/mine"):
        assert (session.folder / name / "manifest.json").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_blocks_and_paths_exist(page: str) -> None:
    text = PAGES[page]
    assert not re.findall(r"^    (?:mathcpt|bash|python|pip) .*", text, re.MULTILINE), "not in a block"
    place = (ROOT / page).parent
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(rf"`((?:{'|'.join(TOP)})/[\w./*-]*)`", prose)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", prose) if "://" not in link]
    inside = [path for path in named if not list(ROOT.glob(path.rstrip("/")))]
    assert not inside
    assert not [link for link in links if not (place / link).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_verbs_and_options_in_sentences_exist(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`mathcpt\s+([^`]+)`", prose):
        words = [word for word in span.split() if word != "--install-completion"]
        named, command = verb_of([word for word in words if not word.startswith("-")])
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert not [option for option in options if option not in known], f"mathcpt {span}"
        assert named or not words or words == ["--help"], f"mathcpt {span}"


def test_every_entry_of_the_table_is_for_some_command() -> None:
    texts = [command.text for text in PAGES.values() for command in commands(text)]
    for start in INSTEAD:
        assert any(re.match(start, text) for text in texts), start
