"""Every command answers `--help` without loading torch, which alone takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("megatron_mathcpt.train", "megatron_mathcpt.experiment", "megatron_mathcpt.evaluation")
COMMANDS = [
    *([str(path.relative_to(ROOT))] for path in sorted((ROOT / "tools").glob("*.py"))),
    ["launch/submit.py"],
    *(["-m", module] for module in MODULES),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_quick(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported or "megatron_mathcpt.evaluation" in imported
    assert not imported & {"torch", "transformers", "megatron.core", "lm_eval", "datatrove", "datasets"}
    assert done.stdout.strip()
