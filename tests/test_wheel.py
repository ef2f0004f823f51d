"""The package as a wheel in an environment of its own, outside of the tree: files, types, commands."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.document_session import make_session

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
USER = """
from pathlib import Path
from megatron_mathcpt import ExperimentConfig, extract_answer, grade, load_config, wilson_interval
reveal_type(grade("1/2", extract_answer("x = 0.5").text).equal)
reveal_type(load_config(Path("a.yaml"), ExperimentConfig).train.seq_length)
reveal_type(wilson_interval)
grade(1, "2")
from megatron_mathcpt import graded
"""


# On a PYTHONPATH pip would find the package installed.
VARIABLES = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def source_files() -> list[str]:
    listing = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    listing += ["--", "megatron_mathcpt", "configs", "setup.py"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and this environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in source_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    venv.create(folder / "environment", symlinks=True)
    python = folder / "environment" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    source = [folder / "source", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *alone, *source, "--wheel-dir", folder], check=True, env=VARIABLES)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", *alone, wheel], check=True, env=VARIABLES)
    (packages,) = (folder / "environment").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def run(python: Path, tmp_path: Path) -> Run:
    """Run a program of the environment in `tmp_path`, without anything of the tree on its path."""

    def call(name: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [python.with_name(name), *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=VARIABLES, capture_output=True, text=True, check=False
        )

    return call


def test_it_contains_all_that_the_package_reads_and_the_quickstart(python: Path, run: Run) -> None:
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    assert not [
        name for name in source_files() if name.startswith("mega") and not (packages / name).is_file()
    ]
    found = run("python", "-c", "import megatron_mathcpt as m; print(m.__file__)").stdout
    assert found.strip() == str(packages / "megatron_mathcpt" / "__init__.py")
    for words, status, told in (
        ("dry-run quickstart", 0, "base2/evaluation"),
        ("submit quickstart --cluster h100", 2, "give the path of a YAML file"),
    ):
        done = run("mathcpt", *words.split(), "--out", "out")
        assert done.returncode == status, done.stderr
        assert told in done.stdout + done.stderr


def test_a_users_type_checker_sees_the_types(python: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", "cache", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert found[:3] == [
        'note: Revealed type is "bool | None"',
        'note: Revealed type is "int"',
        'note: Revealed type is "def (correct: float, items: int, confidence: float =)'
        ' -> tuple[float, float]"',
    ]
    assert found[3].startswith('error: Argument 1 to "grade" has incompatible type "int"')
    assert 'has no attribute "graded"' in found[4]


@pytest.mark.slow
def test_a_model_of_ones_own_is_continued_scored_compared_and_converted(run: Run, tmp_path: Path) -> None:
    make_session(tmp_path, links=False)
    for words, told in (
        ("quickstart --model models/base --data my.jsonl --out first", "Report: "),
        (
            "evaluate --model first/results/own/hf --task held=heldout.jsonl --out scores/own --limit 2",
            "held",
        ),
        ("evaluate --model models/base --task held=heldout.jsonl --out scores/base --limit 2", "held"),
        ("compare scores/base scores/own", "held"),
        ("convert to-hf first/results/own --out again", "largest logit difference"),
    ):
        done = run("mathcpt", *words.split())
        assert done.returncode == 0, f"{words}\n{done.stderr}"
        assert told in done.stdout, words


def test_one_command_makes_the_environment_and_says_how_to_use_it(tmp_path: Path) -> None:
    """Of an environment that is complete already: its mark has the hash of what is installed."""
    sources = (ROOT / "setup.py").read_bytes() + (ROOT / "launch/constraints.txt").read_bytes()
    (tmp_path / ".mathcpt").write_text(hashlib.sha256(sources).hexdigest() + "\n")
    command, variables = ["bash", ROOT / "launch/environment.sh"], {"MATHCPT_VENV": str(tmp_path)}
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout
    assert done == f"The environment is complete. To use it: . {tmp_path}/bin/activate\n"
